/* A QEMU plugin that counts the guest's instructions in one function, its callees included: exactly, every time
 * it is called from one given caller.
 *
 *     cc -O2 -shared -fPIC -fvisibility=hidden count.c -o count.so
 *     qemu-system-arm ... -plugin ./count.so,out=FILE,function=ADDRESS,caller=ADDRESS,caller_end=ADDRESS
 *
 * `function` is the address of its first instruction; `caller` up to but not including `caller_end` are the
 * calling function's. Each call becomes one line of FILE: the number of instructions from the first one of
 * `function` up to the return. Addresses are hexadecimal. The few declarations that are needed are made here,
 * because QEMU's packages come without their header. */
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
enum { NO_REGISTERS = 0, ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORTED int qemu_plugin_version = 1;
EXPORTED int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv);

static uint64_t function, caller, caller_end, executed, at_entry, at_caller;
static bool inside;
static FILE *out;

static void on_function(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    at_entry = executed;
    inside = at_entry - at_caller == 1u; /* the instruction before this one was the caller's */
}

static void on_caller(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    if (inside) fprintf(out, "%" PRIu64 "\n", executed - at_entry);
    inside = false;
    at_caller = executed;
}

static void on_block(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(instruction);
        if (address == function)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_function, NO_REGISTERS, NULL);
        if (address >= caller && address < caller_end)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_caller, NO_REGISTERS, NULL);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, &executed, 1);
    }
}

static void on_exit_of_guest(plugin_id id, void *data) {
    (void)id, (void)data;
    fclose(out);
}

int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (value == NULL) return -1;
        *value++ = '\0';
        if (strcmp(argv[i], "out") == 0) out = fopen(value, "w");
        else if (strcmp(argv[i], "function") == 0) function = strtoull(value, NULL, 16);
        else if (strcmp(argv[i], "caller") == 0) caller = strtoull(value, NULL, 16);
        else if (strcmp(argv[i], "caller_end") == 0) caller_end = strtoull(value, NULL, 16);
        else return -1;
    }
    if (out == NULL) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
    return 0;
}
