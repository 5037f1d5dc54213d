/* A few inputs with the outputs they must give, run on the device itself. */
#ifndef FT_SELFTEST_H
#define FT_SELFTEST_H

#include "fedtiny/ft.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the self-test went. If it failed, `vector` and `byte` say where outputs first differ. */
typedef struct ft_selftest {
    int passed;
    uint32_t vectors; /* how many there are */
    uint32_t vector;
    uint32_t byte;
    int8_t expected;
    int8_t got;
} ft_selftest_t;

/* Run every vector on `model` (open and bound), up to the first difference. `idle`, if not null, is called after
 * every operator: feed a watchdog, serve a radio. FT_OK if it ran, whether it passed or not, else ft_step's. */
ft_status_t ft_selftest_run(ft_model_t *model, void (*idle)(void), ft_selftest_t *result);

/* Copy the input of a vector, which there must be, to `input`. */
void ft_selftest_vector(uint32_t vector, int8_t *input);

/* Copy the input of the first vector to `input`: something to run until there is a sensor. */
void ft_selftest_input(int8_t *input);

#ifdef __cplusplus
}
#endif
#endif
