/* A Cortex-M0 has no memory protection unit; the emulated chip faults outside its own memory. */
#include "ft_board.h"

#if __ARM_ARCH == 6

void ft_board_limit(void) {}

#endif
