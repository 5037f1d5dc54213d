/* Running an opened model: operators in file order, one function call each. */
#include "ft_internal.h"

ft_status_t ft_bind(ft_model_t *model, void *arena, size_t size) {
    if (arena == NULL || (uintptr_t)arena % 4u != 0u) return FT_ERROR_ARGUMENT;
    if (size < model->header.arena_bytes) return FT_ERROR_ARENA;
    model->arena = arena;
    model->next_op = 0u;
    return FT_OK;
}

static int8_t *tensor_data(const ft_model_t *model, uint32_t index, uint32_t *bytes) {
    ft_tensor_t tensor;
    ft_read(model, model->header.tensors + index * FT_TENSOR_BYTES, &tensor, FT_TENSOR_BYTES);
    *bytes = ft_tensor_bytes(&tensor);
    return model->arena == NULL ? NULL : (int8_t *)model->arena + tensor.offset;
}

int8_t *ft_input(const ft_model_t *model) {
    uint32_t bytes;
    return tensor_data(model, model->header.input, &bytes);
}

const int8_t *ft_output(const ft_model_t *model) {
    uint32_t bytes;
    return tensor_data(model, model->header.output, &bytes);
}

size_t ft_input_bytes(const ft_model_t *model) {
    uint32_t bytes;
    (void)tensor_data(model, model->header.input, &bytes);
    return bytes;
}

size_t ft_output_bytes(const ft_model_t *model) {
    uint32_t bytes;
    (void)tensor_data(model, model->header.output, &bytes);
    return bytes;
}

/* Run the operators of a chain in turns: one that can go on hands its rows to the next, one that cannot waits for
 * the one before it. Each takes in all rows there are before it waits, so that none is overwritten unread. */
static void run_chain(ft_context_t *chain, uint32_t count) {
    const ft_context_t *last = &chain[count - 1u];
    for (uint32_t i = 0; last->row < last->output.height;) {
        ft_context_t *context = &chain[i];
        uint32_t before = context->row;
        if (i > 0u) context->available = context[-1].row;
        if (before < context->output.height) ft_kernels[context->op.kernel]->run(context);
        int waits = context->row == before;
        if (waits && i == 0u) return;
        if (waits) i--;
        else if (i + 1u < count) i++;
    }
}

ft_status_t ft_step(ft_model_t *model) {
    ft_context_t chain[FT_MAX_CHAIN];
    uint32_t count = 0;
    if (model->arena == NULL) return FT_ERROR_ARENA;
    do ft_read_op(model, model->next_op++, &chain[count]);
    while (chain[count++].op.streamed);
    run_chain(chain, count);
    if (model->next_op < model->header.op_count) return FT_OK;
    model->next_op = 0u;
    return FT_DONE;
}

ft_status_t ft_invoke(ft_model_t *model) {
    ft_status_t status;
    model->next_op = 0u;
    do status = ft_step(model);
    while (status == FT_OK);
    return status == FT_DONE ? FT_OK : status;
}
