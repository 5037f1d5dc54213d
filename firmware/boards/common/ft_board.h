/* What each family of boards gives to what they have in common. */
#ifndef FT_BOARD_H
#define FT_BOARD_H

#include <stddef.h>
#include <stdint.h>

/* Set by the linker (--defsym); the value is the address. */
extern const char FT_FLASH_START[], FT_FLASH_SIZE[], FT_RAM_START[], FT_RAM_SIZE[];

/* Where the linker puts the stack, and what start-up code fills: the ends of regions, no objects. */
extern uint32_t ft_stack_bottom[], ft_stack_top[];

/* From the board's first instructions, with a stack and nothing else: variables, memory's limits, main, the end. */
void ft_start(void) __attribute__((noreturn));

/* From here on memory ends where the part's does, and flash is not written. */
void ft_board_limit(void);

/* Print a number in hexadecimal behind its name. */
void ft_board_word(const char *name, uint32_t value);

/* Files of the host. Opening returns a negative number if it fails, closing another than 0; reading and writing return
 * how many of `size` bytes were not moved. */
int32_t ft_file_open(const char *path, int writes);
uint32_t ft_file_read(int32_t file, void *data, size_t size);
uint32_t ft_file_write(int32_t file, const void *data, size_t size);
int ft_file_close(int32_t file);

/* Copy the emulator's command line as words that each end in 0; returns its bytes, 0 if there is none or it is too
 * long. */
size_t ft_command_line(char *line, size_t size);

#endif
