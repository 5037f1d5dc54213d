/* Which processor's twins are compiled: one table, decided at compile time. Plain C is the definition; a twin
 * must equal it bit for bit. */
#ifndef FT_ARCH_H
#define FT_ARCH_H

#include <stdint.h>

#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define FT_ARCH_ARM_DSP 1 /* Cortex-M4, M7, M33 and what is built like them */
#include "ft_arch_arm_dsp.h"
#else
#define FT_ARCH_ARM_DSP 0
#include "ft_arch_plain.h"
#endif

/* Products of a window with two channels of four neighbouring pixels. A tap is three words: how many words its
 * input lies behind the one before, and a pair of weights for either channel. The taps are a multiple of
 * FT_DENSE_TAPS and at least one; sums are channel after channel and start as what is in them. */
#define FT_DENSE_TAPS 4u
void ft_dot_2x4(const uint32_t *taps, const uint32_t *end, const uint32_t *window, int32_t *sums);

/* Products of a window with one channel of eight neighbouring pixels. A tap is two words; the taps are a multiple
 * of FT_SPARSE_TAPS and at least one. */
#define FT_SPARSE_TAPS 2u
void ft_dot_1x8(const uint32_t *taps, const uint32_t *end, const uint32_t *window, int32_t *sums);

#endif
