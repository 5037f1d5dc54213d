/* Which layer goes wrong first. In a file of its own: a firmware that does not ask links none of it. */
#include "ft_internal.h"
#include "ft_report.h"
#include "golden.h"

enum { NOT_COMPARED = 0 };

/* FNV-1a: no table, no multiplication wider than a word. */
static uint32_t hash_of(const int8_t *data, uint32_t bytes) {
    uint32_t hash = 0x811C9DC5u;
    for (uint32_t i = 0; i < bytes; i++) hash = (hash ^ (uint8_t)data[i]) * 0x01000193u;
    return hash;
}

/* What the step that ended with operator `last` has written. */
static uint32_t hash_after(const ft_model_t *model, uint32_t last) {
    ft_context_t context;
    ft_read_op(model, last, &context);
    return hash_of(ft_data(&context, &context.output), ft_tensor_bytes(&context.output));
}

ft_status_t ft_report_layers(ft_put_t put, ft_model_t *model, void (*idle)(void), const ft_selftest_t *selftest) {
    uint32_t vector = selftest->vector < FT_GOLDEN_VECTORS ? selftest->vector : 0u;
    ft_status_t status = ft_bind(model, model->arena, model->header.arena_bytes);
    if (status != FT_OK) return status;
    ft_selftest_vector(vector, ft_input(model));
    for (uint32_t step = 0; step < FT_GOLDEN_STEPS && status == FT_OK; step++) {
        uint32_t expected = ft_golden_steps[vector * FT_GOLDEN_STEPS + step];
        status = ft_step(model);
        if (idle != NULL) idle();
        if (status < 0) return status;
        uint32_t last = (status == FT_DONE ? model->header.op_count : model->next_op) - 1u;
        if (expected == NOT_COMPARED || hash_after(model, last) == expected) continue;
        ft_put_text(put, "self-test: the first layer that differs is ");
        ft_put_text(put, ft_golden_step_names[step]);
        put('\n');
        return FT_OK;
    }
    ft_put_text(put, "self-test: every layer is as exported\n");
    return FT_OK;
}
