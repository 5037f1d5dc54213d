/* What an emulated board offers beside the runtime: text, stack use, files of the host, an end.
 * Real boards have none of this; only a main made for an emulated board includes it. */
#ifndef FT_PORT_H
#define FT_PORT_H

#include <stdint.h>

#include "fedtiny/ft.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Write one character, or a text, where the emulator shows it. */
void ft_port_put(char character);
void ft_port_text(const char *text);

/* End the emulator with this exit code, 0 to 255. */
void ft_port_exit(int code) __attribute__((noreturn));

/* Most bytes of stack that were ever in use since reset, and its size. */
uint32_t ft_stack_used(void);
uint32_t ft_stack_bytes(void);

/* If the emulator's command line names inputs=FILE and outputs=FILE, run every sample of the one and write its
 * result to the other, both int8 without a header. `model` is open and bound. Returns 0, or 3 if a file cannot
 * be used. The instruction counter counts each ft_invoke made here. */
int ft_port_serve(ft_model_t *model);

#ifdef __cplusplus
}
#endif
#endif
