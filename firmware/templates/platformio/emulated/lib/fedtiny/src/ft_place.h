/* Where constant data lies: in sections of its own, so that its bytes in flash are told from the code's. */
#ifndef FT_PLACE_H
#define FT_PLACE_H

#define FT_PLACE_MODEL __attribute__((section(".ft_model")))
#define FT_PLACE_INPUTS __attribute__((section(".ft_selftest")))
#define FT_PLACE_OUTPUTS __attribute__((section(".ft_selftest")))
#define FT_PLACE_LABELS __attribute__((section(".ft_labels")))

#endif
