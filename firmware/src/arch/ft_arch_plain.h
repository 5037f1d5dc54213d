/* Small operations of the inner loops, in plain C. */
#ifndef FT_ARCH_PLAIN_H
#define FT_ARCH_PLAIN_H

#include <stdint.h>

/* Two int8 numbers as the two signed halves of a word. */
static inline uint32_t ft_pair(int32_t first, int32_t second) {
    return ((uint32_t)first & 0xFFFFu) | ((uint32_t)second << 16);
}

/* The four int8 numbers of a word as two pairs. */
static inline void ft_widen(uint32_t four, uint32_t *first, uint32_t *second) {
    *first = ft_pair((int8_t)four, (int8_t)(four >> 8));
    *second = ft_pair((int8_t)(four >> 16), (int8_t)(four >> 24));
}

/* The 32 bits from bit `at` on of a stream of words; two words are there to be read. */
static inline uint32_t ft_bits(const uint32_t *words, uint32_t at) {
    words += at / 32u;
    return (words[0] >> (at % 32u)) | (words[1] << 1 << (31u - at % 32u));
}

/* The same, of which only the lowest 25 are wanted. */
static inline uint32_t ft_few_bits(const uint32_t *words, uint32_t at) { return ft_bits(words, at); }

/* (x * multiplier + 2^31 >> 32) + offset. */
static inline int32_t ft_high(int32_t x, int32_t multiplier, int32_t offset) {
    return (int32_t)(((int64_t)x * multiplier + ((int64_t)1 << 31)) >> 32) + offset;
}

static inline int32_t ft_saturate(int32_t value) { return value < -128 ? -128 : value > 127 ? 127 : value; }

static inline void ft_copy_words(uint32_t *to, const uint32_t *from, uint32_t words) {
    while (words-- > 0u) *to++ = *from++;
}

#endif
