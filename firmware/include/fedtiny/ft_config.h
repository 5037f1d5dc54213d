/* Every build option of the runtime, with its default and its price. Define them on the compiler's command
 * line; nothing here depends on a board. */
#ifndef FT_CONFIG_H
#define FT_CONFIG_H

/* 1: the model lies in memory that allows only aligned 32-bit loads (the ESP8266's flash). Every byte of the
 * model is then cut out of a word: about three instructions more for each byte read. */
#ifndef FT_MODEL_WORDS_ONLY
#define FT_MODEL_WORDS_ONLY 0
#endif

/* 1: convolutions are compiled for speed whatever the project's own flags are (frameworks default to -Os).
 * Costs about 580 bytes of code on a Cortex-M4. Only GCC understands it. */
#ifndef FT_FAST_CONV
#define FT_FAST_CONV 1
#endif

/* Where the kernels' inner loops are placed, for parts that run faster from RAM or tightly coupled memory,
 * for example __attribute__((section(".iram1.ft"))). Costs that much RAM. */
#ifndef FT_HOT
#define FT_HOT
#endif

#endif
