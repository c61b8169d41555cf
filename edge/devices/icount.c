/* A plug-in of qemu (TCG plug-in API, version 1) that counts the aarch64 instructions of a program between marks.
 *
 * A mark is the system call getppid, which the agent makes before the first and after every inference. For each stretch
 * between two marks one JSON line goes to the file of the argument out=. Only the documented API is used, declared here
 * because no package brings its header. The counters are of the process: one thread, and the number is exact.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct block;
struct instruction;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id,
        void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                 uint64_t));

EXPORT int qemu_plugin_version = 1;

enum { TOTAL, LOAD_STORE, SIMD, DOT_PRODUCT, BRANCH, CLASSES };
static const char *const names[CLASSES] = {"total", "load_store", "simd", "dot_product", "branch"};
enum { INLINE_ADD_U64 = 0, GETPPID = 173 };

static uint64_t counters[CLASSES], at_last_mark[CLASSES];
static FILE *out;
static int marked;

/* Classes by bits 28..25, the main encoding table of the ARM Architecture Reference Manual for A64 (C4.1). */
static int class_of(uint32_t word)
{
    unsigned group = (word >> 25) & 15;
    if ((group & 5) == 4)
        return LOAD_STORE;
    if ((group & 7) == 7)
        return SIMD;
    if ((group & 14) == 10)
        return BRANCH;
    return TOTAL;
}

/* SDOT and UDOT, vector and by element. */
static int is_dot_product(uint32_t word)
{
    return (word & 0x9f20fc00) == 0x0e009400 || (word & 0x9f00f400) == 0x0f00e000;
}

static void translated(plugin_id id, struct block *block)
{
    uint64_t found[CLASSES] = {0};
    size_t length = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        found[TOTAL]++;
        if (class_of(word) != TOTAL)
            found[class_of(word)]++;
        if (is_dot_product(word))
            found[DOT_PRODUCT]++;
    }
    for (int i = 0; i < CLASSES; i++)
        if (found[i])
            qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &counters[i], found[i]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPPID)
        return;
    if (marked) {
        for (int i = 0; i < CLASSES; i++)
            fprintf(out, "%s\"%s\": %llu", i ? ", " : "{", names[i], (unsigned long long)(counters[i] - at_last_mark[i]));
        fputs("}\n", out);
        fflush(out);
    }
    marked = 1;
    memcpy(at_last_mark, counters, sizeof counters);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
