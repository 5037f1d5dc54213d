/* The table with every kernel, for hosts and tests. A generated project has one of its own, with just the
 * kernels that its model uses. */
#include "fedtiny/ft.h"

const ft_kernel_t *const ft_kernels[FT_KERNEL_COUNT] = {
    &ft_kernel_conv_dense, &ft_kernel_conv_bitmap, &ft_kernel_conv_gap, &ft_kernel_add, &ft_kernel_mean, &ft_kernel_conv_rice,
    &ft_kernel_depthwise, &ft_kernel_pool, &ft_kernel_softmax, &ft_kernel_table, &ft_kernel_mul, &ft_kernel_place,
    &ft_kernel_resize,     &ft_kernel_vector,
};
