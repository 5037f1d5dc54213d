/* An emulated board has more memory than the part it stands for, and some never fault beyond it. The memory
 * protection unit of Armv7-M does: flash can be read and run, RAM be read and written, and nothing else exists. */
#include "ft_board.h"
#include "ft_port.h"

#if __ARM_ARCH == 7

#define MPU_CTRL (*(volatile uint32_t *)0xE000ED94u)
#define MPU_RNR (*(volatile uint32_t *)0xE000ED98u)
#define MPU_RBAR (*(volatile uint32_t *)0xE000ED9Cu)
#define MPU_RASR (*(volatile uint32_t *)0xE000EDA0u)
#define SHCSR (*(volatile uint32_t *)0xE000ED24u)

#define READ_ONLY (6u << 24)
#define READ_WRITE (3u << 24)
#define NO_EXECUTE (1u << 28)
#define NORMAL_MEMORY (6u << 16) /* shareable, cacheable */
#define REGIONS 8u

/* Cover start..start+size exactly with regions, each a power of two in size and at a multiple of it. */
static uint32_t cover(uint32_t region, uint32_t start, uint32_t size, uint32_t attributes) {
    while (size != 0u) {
        uint32_t log2 = 5u;
        while (log2 < 31u && (start & ((2u << log2) - 1u)) == 0u && (2u << log2) <= size) log2++;
        uint32_t block = 1u << log2;
        if (region == REGIONS || block > size || (start & (block - 1u)) != 0u) {
            ft_port_text("the MPU cannot describe this board's memory\n");
            ft_port_exit(99);
        }
        MPU_RNR = region++;
        MPU_RBAR = start;
        MPU_RASR = attributes | NORMAL_MEMORY | ((log2 - 1u) << 1) | 1u;
        start += block;
        size -= block;
    }
    return region;
}

void ft_board_limit(void) {
    uint32_t region = cover(0u, (uint32_t)FT_FLASH_START, (uint32_t)FT_FLASH_SIZE, READ_ONLY);
    (void)cover(region, (uint32_t)FT_RAM_START, (uint32_t)FT_RAM_SIZE, READ_WRITE | NO_EXECUTE);
    SHCSR |= 7u << 16; /* memory, bus and usage faults */
    MPU_CTRL = 1u;
    __asm__ volatile("dsb\n isb");
}

#endif
