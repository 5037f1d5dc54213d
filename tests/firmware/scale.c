/* Compares the two ways to rescale, for every right shift of the quick one: ends with 1 where they differ, else 0. */
#include <stdio.h>

#include "arch/ft_arch.h"

static uint32_t state = 1u;

static uint32_t next(void) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static int differ(int32_t x, int32_t multiplier, int32_t shift, int32_t zero_point) {
    ft_quick_t quick;
    ft_scale_t scale = ft_scale(multiplier, shift);
    if (!ft_quick(&quick, multiplier, shift, zero_point)) return 1;
    int32_t expected = ft_finish(ft_rescale(x, &scale), zero_point, -128, 127);
    int32_t got = ft_saturate(ft_quick_rescale(x, &quick));
    if (got != expected) printf("%d * %d, %d, %d: %d, not %d\n", x, multiplier, shift, zero_point, got, expected);
    return got != expected;
}

/* Sums near every half that rounds to an int8, and anywhere. */
static int differ_near(int32_t multiplier, int32_t shift, int32_t zero_point) {
    int wrong = 0;
    for (int32_t half = -515; half <= 515; half++) {
        int64_t sum = half * ((int64_t)1 << (30 - shift)) / (multiplier > 0 ? multiplier : 1);
        for (int32_t step = -3; step <= 3; step++)
            if (sum + step > -(1 << 30) && sum + step < 1 << 30)
                wrong |= differ((int32_t)sum + step, multiplier, shift, zero_point);
    }
    for (int i = 0; i < 200; i++) wrong |= differ((int32_t)next() >> (2u + next() % 29u), multiplier, shift, zero_point);
    return wrong;
}

int main(void) {
    ft_quick_t quick;
    int wrong = ft_quick(&quick, 1 << 30, 0, 0) || ft_quick(&quick, 1 << 30, 1, 0) || ft_quick(&quick, 1 << 30, -23, 0);
    for (int32_t shift = -22; shift <= -1; shift++)
        for (int32_t zero_point = -128; zero_point <= 127; zero_point += 51) {
            wrong |= differ_near(1 << 30, shift, zero_point) || differ_near(INT32_MAX, shift, zero_point);
            wrong |= differ_near(0, shift, zero_point) || differ_near(1, shift, zero_point);
            for (int i = 0; i < 10; i++) wrong |= differ_near((int32_t)(next() >> 2 | 1u << 30), shift, zero_point);
        }
    return wrong;
}
