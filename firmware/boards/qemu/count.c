/* A QEMU plugin that counts the guest's instructions in one function, its callees included: exactly, every time
 * it is called from one given caller.
 *
 *     cc -O2 -shared -fPIC -fvisibility=hidden count.c -o count.so
 *     qemu-system-arm ... -plugin ./count.so,out=FILE,function=ADDRESS,caller=ADDRESS,caller_end=ADDRESS
 *
 * `function` is the address of its first instruction; `caller` up to but not including `caller_end` are the
 * calling function's. Each call becomes one line of FILE: the number of instructions from the first one of
 * `function` up to the return, and what they would take by the table of costs below: the emulator knows no time, so
 * that is a model, made for the Cortex-M4 and memory without wait states. Addresses are hexadecimal. The few
 * declarations that are needed are made here, because QEMU's packages come without their header. */
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
char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORTED int qemu_plugin_version = 1;
EXPORTED int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv);

/* Processor cycles, as incumbent figures beside ours were modelled: one, but two for a load of one register, one more
 * than there are registers for several, six for a division, and two more where the next instruction is another one than
 * that behind it. */
enum { ONE = 1, LOAD = 2, DIVISION = 6, BRANCHED = 2 };

struct block {
    uint64_t start, end;
};

static uint64_t function, caller, caller_end, executed, at_entry, at_caller, cycles, cycles_at_entry, expected;
static bool inside;
static FILE *out;

static bool begins(const char *text, const char *word) { return strncmp(text, word, strlen(word)) == 0; }

static uint64_t cost(const struct qemu_plugin_insn *instruction) {
    char *text = qemu_plugin_insn_disas(instruction), *list = text ? strchr(text, '{') : NULL;
    if (text == NULL) return ONE;
    uint64_t cost = ONE;
    if (begins(text, "push") || begins(text, "pop") || begins(text, "ldm") || begins(text, "stm") ||
        begins(text, "vpush") || begins(text, "vpop") || begins(text, "vldm") || begins(text, "vstm")) {
        for (cost = ONE + 1; list && *list; list++) cost += *list == ',';
    } else if (begins(text, "ldrd") || begins(text, "strd")) {
        cost = ONE + 2;
    } else if (begins(text, "ldr") || begins(text, "vldr")) {
        cost = LOAD;
    } else if (begins(text, "sdiv") || begins(text, "udiv")) {
        cost = DIVISION;
    }
    free(text);
    return cost;
}

static void on_function(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    at_entry = executed, cycles_at_entry = cycles;
    inside = at_entry - at_caller == 1u; /* the instruction before this one was the caller's */
}

static void on_caller(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    if (inside) fprintf(out, "%" PRIu64 " %" PRIu64 "\n", executed - at_entry, cycles - cycles_at_entry);
    inside = false;
    at_caller = executed;
}

static void on_entry(unsigned cpu, void *data) {
    (void)cpu;
    const struct block *block = data;
    if (block->start != expected) cycles += BRANCHED;
    expected = block->end;
}

static void on_block(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    struct block *place = malloc(sizeof *place); /* used as long as the emulator runs */
    if (place == NULL) abort();
    const struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(block, qemu_plugin_tb_n_insns(block) - 1);
    place->start = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, 0));
    place->end = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_entry, NO_REGISTERS, place);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(instruction);
        if (address == function)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_function, NO_REGISTERS, NULL);
        if (address >= caller && address < caller_end)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_caller, NO_REGISTERS, NULL);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, &executed, 1);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, &cycles, cost(instruction));
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
