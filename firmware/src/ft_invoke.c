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

ft_status_t ft_step(ft_model_t *model) {
    ft_context_t context;
    if (model->arena == NULL) return FT_ERROR_ARENA;
    ft_read_op(model, model->next_op, &context);
    ft_kernels[context.op.kernel]->run(&context);
    model->next_op++;
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
