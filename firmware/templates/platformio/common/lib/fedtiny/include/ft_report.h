/* What a device says about itself: lines for people, and one line that fedtiny-check reads. */
#ifndef FT_REPORT_H
#define FT_REPORT_H

#include "ft_selftest.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes one character to wherever text goes. */
typedef void (*ft_put_t)(char character);

/* What is only known on the device; 0 where it is not known. */
typedef struct ft_report {
    uint32_t stack_used;   /* bytes of stack, at most, since reset */
    uint32_t stack_bytes;  /* its size */
    uint32_t microseconds; /* of one inference */
} ft_report_t;

void ft_put_text(ft_put_t put, const char *text);
void ft_put_int(ft_put_t put, int32_t value);

/* Write `FEDTINY {...} CRC`: one JSON object and the CRC-32 of its bytes in eight hexadecimal digits. Before it,
 * if the self-test failed, one line that says where. */
void ft_report_write(ft_put_t put, const ft_report_t *report, const ft_selftest_t *selftest);

/* After a self-test that failed: run its vector again and write the name of the first layer whose output is not as
 * exported. Layers that hand rows to one another are named together. Links four bytes for each layer and vector, and the
 * names; nothing if it is never called. FT_OK, or ft_step's error. */
ft_status_t ft_report_layers(ft_put_t put, ft_model_t *model, void (*idle)(void), const ft_selftest_t *selftest);

/* Write why the model is not run: one line, which fedtiny-check --serial knows. */
void ft_report_refusal(ft_put_t put, ft_status_t status);

/* Write the largest of the outputs with its label. */
void ft_report_answer(ft_put_t put, const int8_t *output);

#ifdef __cplusplus
}
#endif
#endif
