/* Arithmetic that compilers for the ESP8266 leave to the chip's ROM, and that an emulated core has nowhere. */
#include <stdint.h>

typedef union {
    uint64_t whole;
    struct {
        uint32_t low, high;
    } half;
} ft_halves_t;

uint32_t __udivsi3(uint32_t a, uint32_t b);
uint32_t __umodsi3(uint32_t a, uint32_t b);
int64_t __muldi3(int64_t a, int64_t b);

/* Long division, a bit at a time. */
static uint32_t divide(uint32_t a, uint32_t b, uint32_t *rest) {
    uint32_t quotient = 0, left = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t carry = left >> 31;
        left = left << 1 | (a >> bit & 1u);
        if (carry == 0u && left < b) continue;
        left -= b;
        quotient |= (uint32_t)1 << bit;
    }
    *rest = left;
    return quotient;
}

uint32_t __udivsi3(uint32_t a, uint32_t b) {
    uint32_t rest;
    return divide(a, b, &rest);
}

uint32_t __umodsi3(uint32_t a, uint32_t b) {
    uint32_t rest;
    (void)divide(a, b, &rest);
    return rest;
}

/* The lower 64 bits of the product: the core multiplies 16 bits with 16, and 32 with 32 to 32. */
int64_t __muldi3(int64_t a, int64_t b) {
    ft_halves_t x = {(uint64_t)a}, y = {(uint64_t)b}, product;
    uint32_t x0 = x.half.low & 0xFFFFu, x1 = x.half.low >> 16, y0 = y.half.low & 0xFFFFu, y1 = y.half.low >> 16;
    uint32_t low = x0 * y0, first = x0 * y1, second = x1 * y0;
    uint32_t middle = (low >> 16) + (first & 0xFFFFu) + (second & 0xFFFFu);
    product.half.low = middle << 16 | (low & 0xFFFFu);
    product.half.high = x1 * y1 + (first >> 16) + (second >> 16) + (middle >> 16);
    product.half.high += x.half.low * y.half.high + x.half.high * y.half.low;
    return (int64_t)product.whole;
}
