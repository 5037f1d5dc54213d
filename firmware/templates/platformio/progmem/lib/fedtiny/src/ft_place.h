/* Where constant data lies: the linker script would copy it to RAM unless it is placed in .progmem. There it can be
 * read like any memory. */
#ifndef FT_PLACE_H
#define FT_PLACE_H

#define FT_PLACE_MODEL __attribute__((section(".progmem.ft_model")))
#define FT_PLACE_INPUTS __attribute__((section(".progmem.ft_golden_inputs")))
#define FT_PLACE_OUTPUTS __attribute__((section(".progmem.ft_golden_outputs")))
#define FT_PLACE_LABELS __attribute__((section(".progmem.ft_labels")))

#endif
