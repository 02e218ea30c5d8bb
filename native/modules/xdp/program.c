/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The XDP program: stamps each frame with the kernel's clock and redirects it to the socket of its receive queue; a frame of a
 * queue without a socket goes its usual way.
 *
 * It is small enough to be written as instructions, so no compiler for BPF is needed, neither here nor on the host. libxdp's own
 * program is not used: that one is attached through netlink and stays when the process is killed.
 */
#include "xdp.h"

#include "error.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static struct xdp_program *programs;
static pthread_mutex_t programs_lock = PTHREAD_MUTEX_INITIALIZER;

enum { R0, R1, R2, R3, R4, R5, R6, R7 };

/* clang-format off */
#define MOVE(to, from) {.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = (to), .src_reg = (from)}
#define MOVE_NUMBER(to, number) {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = (to), .imm = (number)}
#define ADD_NUMBER(to, number) {.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = (to), .imm = (number)}
#define CONTEXT(to, member) {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = (to), .src_reg = R6, .off = offsetof(struct xdp_md, member)}
#define STORE(to, from, offset) {.code = BPF_STX | BPF_MEM | BPF_DW, .dst_reg = (to), .src_reg = (from), .off = (offset)}
#define LOAD_64(to, kind, low, high) \
    {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = (to), .src_reg = (kind), .imm = (low)}, {.imm = (high)}
#define CALL(helper) {.code = BPF_JMP | BPF_CALL, .imm = (helper)}
#define SKIP_IF_NOT_ZERO(reg, count) {.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = (reg), .off = (count)}
#define SKIP_IF_ABOVE(reg, limit, count) {.code = BPF_JMP | BPF_JGT | BPF_X, .dst_reg = (reg), .src_reg = (limit), .off = (count)}
#define RETURN {.code = BPF_JMP | BPF_EXIT}
/* clang-format on */

static int load(struct xdp_program *program) {
    const struct bpf_insn instructions[] = {
        MOVE(R6, R1),
        MOVE_NUMBER(R2, -(int)sizeof(struct xdp_stamp)), /* room for the stamp, directly before the frame */
        CALL(BPF_FUNC_xdp_adjust_meta),
        SKIP_IF_NOT_ZERO(R0, 11), /* a driver that has none */
        CALL(BPF_FUNC_ktime_get_ns),
        MOVE(R7, R0),
        CONTEXT(R2, data_meta),
        CONTEXT(R3, data),
        MOVE(R4, R2),
        ADD_NUMBER(R4, (int)sizeof(struct xdp_stamp)),
        SKIP_IF_ABOVE(R4, R3, 4), /* never; the verifier wants to see it */
        LOAD_64(R5, 0, (int32_t)(uint32_t)program->mark, (int32_t)(uint32_t)(program->mark >> 32)),
        STORE(R2, R5, offsetof(struct xdp_stamp, mark)),
        STORE(R2, R7, offsetof(struct xdp_stamp, mono_ns)),
        LOAD_64(R1, BPF_PSEUDO_MAP_FD, program->map, 0), /* both skips end here */
        CONTEXT(R2, rx_queue_index),
        MOVE_NUMBER(R3, XDP_PASS), /* where the map has no socket */
        CALL(BPF_FUNC_redirect_map),
        RETURN,
    };
    return bpf_prog_load(BPF_PROG_TYPE_XDP, "jarvis_capture", "Apache-2.0", instructions,
                         sizeof instructions / sizeof *instructions, NULL);
}

static int refused(const struct capture_config *config, const char *what, int reason, struct capture_error_info *error) {
    if (reason == EBUSY)
        return capture_fail(error, CAPTURE_ERR_BACKEND, "interface", "interface %s has an XDP program already: it takes one",
                            config->interface);
    return capture_fail(error, reason == EPERM || reason == EACCES ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_IO, "interface",
                        "interface %s: %s: %s", config->interface, what,
                        reason == EPERM || reason == EACCES ? "CAP_NET_ADMIN or CAP_BPF is missing" : strerror(reason));
}

/* In the driver where it can, else in the stack. */
static int attach(struct xdp_program *program, int index) {
    LIBBPF_OPTS(bpf_link_create_opts, native, .flags = XDP_FLAGS_DRV_MODE);
    LIBBPF_OPTS(bpf_link_create_opts, generic, .flags = XDP_FLAGS_SKB_MODE);
    program->link = bpf_link_create(program->program, index, BPF_XDP, &native);
    program->native = program->link >= 0;
    if (program->link < 0 && program->link != -EBUSY)
        program->link = bpf_link_create(program->program, index, BPF_XDP, &generic);
    return program->link < 0 ? program->link : 0;
}

static void detach(struct xdp_program *program) {
    const int descriptors[] = {program->link, program->program, program->map};
    for (int i = 0; i < 3; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    free(program);
}

/* libbpf and libxdp print to stderr what they return as an error too. */
static int say_nothing(enum libbpf_print_level level, const char *format, va_list arguments) {
    (void)level, (void)format, (void)arguments;
    return 0;
}

static int make(const struct capture_config *config, int index, struct xdp_program **out, struct capture_error_info *error) {
    struct xdp_program *program = calloc(1, sizeof *program);
    if (!program)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "interface", "no memory for the capture");
    *program = (struct xdp_program){.config = config, .map = -1, .program = -1, .link = -1};
    libbpf_set_print(say_nothing);
    if (getrandom(&program->mark, sizeof program->mark, 0) != sizeof program->mark) {
        detach(program);
        return capture_fail(error, CAPTURE_ERR_IO, "", "the operating system gave no random bytes");
    }
    const char *what = "the map of sockets cannot be made";
    int result = program->map =
        bpf_map_create(BPF_MAP_TYPE_XSKMAP, "jarvis_sockets", sizeof(uint32_t), sizeof(int), XDP_QUEUES_MAX, NULL);
    if (result >= 0) {
        what = "the XDP program cannot be loaded";
        result = program->program = load(program);
    }
    if (result >= 0) {
        what = "the XDP program cannot be attached";
        result = attach(program, index);
    }
    if (result < 0) {
        detach(program);
        return refused(config, what, -result, error);
    }
    *out = program;
    return CAPTURE_OK;
}

int xdp_program_join(const struct capture_config *config, int index, struct xdp_program **out, struct capture_error_info *error) {
    int code = CAPTURE_OK;
    pthread_mutex_lock(&programs_lock);
    struct xdp_program *program = programs;
    while (program && program->config != config)
        program = program->next;
    if (!program && (code = make(config, index, &program, error)) == CAPTURE_OK) {
        program->next = programs;
        programs = program;
    }
    if (code == CAPTURE_OK) {
        program->members++;
        *out = program;
    }
    pthread_mutex_unlock(&programs_lock);
    return code;
}

void xdp_program_leave(struct xdp_program *program) {
    pthread_mutex_lock(&programs_lock);
    if (--program->members == 0) {
        struct xdp_program **at = &programs;
        while (*at != program)
            at = &(*at)->next;
        *at = program->next;
        detach(program);
    }
    pthread_mutex_unlock(&programs_lock);
}

int xdp_program_admit(struct xdp_program *program, struct xdp_socket *xsk) {
    pthread_mutex_lock(&programs_lock);
    program->sockets[xsk->queue] = xsk;
    pthread_mutex_unlock(&programs_lock);
    return bpf_map_update_elem(program->map, &xsk->queue, &xsk->fd, BPF_ANY);
}

void xdp_program_shut(const struct xdp_program *program, const struct xdp_socket *xsk) {
    (void)bpf_map_delete_elem(program->map, &xsk->queue); /* fails only where it was not admitted */
}

void xdp_program_forget(struct xdp_program *program, const struct xdp_socket *xsk) {
    pthread_mutex_lock(&programs_lock);
    if (program->sockets[xsk->queue] == xsk) {
        program->sockets[xsk->queue] = NULL;
        program->dropped_closed += xdp_socket_dropped(xsk);
    }
    pthread_mutex_unlock(&programs_lock);
}

uint64_t xdp_program_dropped(struct xdp_program *program) {
    pthread_mutex_lock(&programs_lock);
    uint64_t dropped = program->dropped_closed;
    for (uint32_t queue = 0; queue < XDP_QUEUES_MAX; queue++)
        if (program->sockets[queue])
            dropped += xdp_socket_dropped(program->sockets[queue]);
    pthread_mutex_unlock(&programs_lock);
    return dropped;
}
