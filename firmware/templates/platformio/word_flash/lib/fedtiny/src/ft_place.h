/* Where constant data lies: the linker script would copy it to RAM unless it is placed with the code. There,
 * only aligned words can be read. */
#ifndef FT_PLACE_H
#define FT_PLACE_H

#define FT_PLACE_MODEL __attribute__((section(".irom.text.ft_model")))
#define FT_PLACE_INPUTS __attribute__((section(".irom.text.ft_golden_inputs")))
#define FT_PLACE_OUTPUTS __attribute__((section(".irom.text.ft_golden_outputs")))
#define FT_PLACE_LABELS /* read by bytes */

#endif
