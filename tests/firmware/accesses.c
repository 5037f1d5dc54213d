/* A QEMU plugin that looks at every access of the guest to its memory.
 *
 *     cc -O2 -shared -fPIC -fvisibility=hidden accesses.c -o accesses.so
 *     qemu-system-arm ... -plugin ./accesses.so,out=FILE,from=ADDRESS,to=ADDRESS
 *
 * FILE gets four numbers: accesses, those whose address is no multiple of their size, loads of less than a word between
 * the two addresses, and of the second those that are no loads between the two addresses. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum { NO_REGISTERS = 0, READS_AND_WRITES = 3, WORD = 2 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int, int,
                                      void *);
unsigned qemu_plugin_mem_size_shift(uint32_t);
bool qemu_plugin_mem_is_store(uint32_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORTED int qemu_plugin_version = 1;
EXPORTED int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv);

static uint64_t from, to, accesses, unaligned, narrow, elsewhere;
static FILE *out;

static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *data) {
    (void)cpu, (void)data;
    unsigned shift = qemu_plugin_mem_size_shift(info);
    accesses++;
    bool loaded = address >= from && address < to && !qemu_plugin_mem_is_store(info);
    bool off = (address & ((1u << shift) - 1u)) != 0u;
    unaligned += off;
    elsewhere += off && !loaded;
    narrow += loaded && shift < WORD;
}

static void on_block(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, READS_AND_WRITES, NULL);
    }
}

static void on_exit_of_guest(plugin_id id, void *data) {
    (void)id, (void)data;
    fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", accesses, unaligned, narrow, elsewhere);
    fclose(out);
}

int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (value == NULL) return -1;
        *value++ = '\0';
        if (strcmp(argv[i], "out") == 0) out = fopen(value, "w");
        else if (strcmp(argv[i], "from") == 0) from = strtoull(value, NULL, 16);
        else if (strcmp(argv[i], "to") == 0) to = strtoull(value, NULL, 16);
        else return -1;
    }
    if (out == NULL) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
    return 0;
}
