/* The same limits with the memory protection unit of Armv8-M, whose regions end at any multiple of 32 bytes. */
#include "ft_board.h"

#if __ARM_ARCH == 8

#define MPU_CTRL (*(volatile uint32_t *)0xE000ED94u)
#define MPU_RNR (*(volatile uint32_t *)0xE000ED98u)
#define MPU_RBAR (*(volatile uint32_t *)0xE000ED9Cu)
#define MPU_RLAR (*(volatile uint32_t *)0xE000EDA0u)
#define MPU_MAIR0 (*(volatile uint32_t *)0xE000EDC0u)
#define SHCSR (*(volatile uint32_t *)0xE000ED24u)

#define READ_ONLY (3u << 1)
#define READ_WRITE (1u << 1)
#define NO_EXECUTE 1u

static void region(uint32_t number, uint32_t start, uint32_t size, uint32_t attributes) {
    MPU_RNR = number;
    MPU_RBAR = start | attributes;
    MPU_RLAR = ((start + size - 1u) & ~31u) | 1u;
}

void ft_board_limit(void) {
    MPU_MAIR0 = 0xFFu; /* normal memory, cacheable */
    region(0u, (uint32_t)FT_FLASH_START, (uint32_t)FT_FLASH_SIZE, READ_ONLY);
    region(1u, (uint32_t)FT_RAM_START, (uint32_t)FT_RAM_SIZE, READ_WRITE | NO_EXECUTE);
    SHCSR |= 7u << 16; /* memory, bus and usage faults */
    MPU_CTRL = 1u;
    __asm__ volatile("dsb\n isb");
}

#endif
