/* What every emulated board does with the files of the host. */
#include <stddef.h>

#include "ft_board.h"
#include "ft_port.h"

enum { FILES_FAILED = 3, LINE_BYTES = 128 };

void ft_port_text(const char *text) {
    while (*text != '\0') ft_port_put(*text++);
}

/* Find the word that begins with `key` among words that each end in 0; return what follows it, or null. */
static const char *value_of(const char *words, size_t bytes, const char *key) {
    for (size_t at = 0; at < bytes; at++) {
        size_t i = 0;
        while (key[i] != '\0' && words[at + i] == key[i]) i++;
        if (key[i] == '\0') return words + at + i;
        while (at < bytes && words[at] != '\0') at++;
    }
    return NULL;
}

/* A function of its own: the instruction counter starts when ft_invoke is entered and stops back in here. */
__attribute__((noinline, noclone)) ft_status_t ft_port_invoke(ft_model_t *model);
ft_status_t ft_port_invoke(ft_model_t *model) {
    ft_status_t status = ft_invoke(model);
    __asm__ volatile("" ::: "memory"); /* no tail call */
    return status;
}

static int serve_files(ft_model_t *model, int32_t in, int32_t out) {
    for (;;) {
        size_t size = ft_input_bytes(model);
        uint32_t missing = ft_file_read(in, ft_input(model), size);
        if (missing == size) return 0;
        if (missing != 0u || ft_port_invoke(model) != FT_OK) return FILES_FAILED;
        if (ft_file_write(out, ft_output(model), ft_output_bytes(model)) != 0u) return FILES_FAILED;
    }
}

int ft_port_serve(ft_model_t *model) {
    char line[LINE_BYTES];
    size_t bytes = ft_command_line(line, sizeof line);
    const char *inputs = value_of(line, bytes, "inputs="), *outputs = value_of(line, bytes, "outputs=");
    if (inputs == NULL || outputs == NULL) return 0;
    int32_t in = ft_file_open(inputs, 0), out = ft_file_open(outputs, 1);
    int result = in < 0 || out < 0 ? FILES_FAILED : serve_files(model, in, out);
    if (out >= 0 && ft_file_close(out) != 0) result = FILES_FAILED;
    if (in >= 0) (void)ft_file_close(in);
    return result;
}
