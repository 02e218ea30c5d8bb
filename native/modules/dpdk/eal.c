/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts the EAL, once for the process, on a thread of its own.
 *
 * rte_eal_init pins its caller, inherits its signal mask to threads that it leaves behind, and writes to stdout and stderr when
 * an argument displeases it: hence the thread, the blocked signals and the streams that are swapped meanwhile (of C's stdio, not
 * the descriptors): what is for stderr goes into the log, and the usage that it prints to stdout nowhere.
 */
#include "eal.h"

#include "eal_args.h"
#include "eal_log.h"
#include "error.h"

#include <errno.h>
#include <pthread.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of everything here but the thread key */
static bool running;
static FILE *log_stream, *nowhere;
static struct eal_args given;                  /* as the EAL got them: it keeps pointers into it */
static char asked[EAL_ARGS_MAX][EAL_ARG_SIZE]; /* as the configuration said */
static uint32_t asked_count;

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static _Thread_local bool attached;

struct start {
    int result, reason;
};

static void *start_thread(void *argument) {
    struct start *start = argument;
    FILE *out = stdout, *err = stderr;
    stdout = nowhere;
    stderr = log_stream;
    start->result = rte_eal_init(given.argc, given.argv);
    start->reason = rte_errno;
    stdout = out;
    stderr = err;
    fflush(log_stream);
    return NULL;
}

static int first_cpu(void) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0)
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &cpus))
                return cpu;
    return 0;
}

static int run_start(struct start *start) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&thread, NULL, start_thread, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0)
        pthread_join(thread, NULL);
    return failure;
}

static int start_locked(const struct capture_config *config, struct capture_error_info *error) {
    if (!nowhere)
        nowhere = fopen("/dev/null", "we");
    if (!log_stream)
        log_stream = eal_log_open();
    if (!nowhere || !log_stream || rte_openlog_stream(log_stream) != 0)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "dpdk_eal_args", "no memory for the log of DPDK");
    eal_args_complete(config, eal_free_huge_pages(), first_cpu(), &given);
    uint64_t mark = eal_log_mark();
    struct start start = {0};
    int failure = run_start(&start);
    if (failure != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "dpdk_eal_args", "the thread that starts DPDK could not be started: %s",
                            strerror(failure));
    if (start.result < 0) {
        char said[160];
        eal_log_since(mark, said, sizeof said);
        int code = start.reason == EACCES || start.reason == EPERM ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_BACKEND;
        return capture_fail(error, code, "dpdk_eal_args", "DPDK does not start: %s%s", rte_strerror(start.reason), said);
    }
    running = true;
    asked_count = config->dpdk_eal_arg_count;
    for (uint32_t i = 0; i < asked_count; i++)
        snprintf(asked[i], sizeof asked[i], "%s", config->dpdk_eal_args[i]);
    return CAPTURE_OK;
}

static bool asks_the_same(const struct capture_config *config) {
    bool same = config->dpdk_eal_arg_count == asked_count;
    for (uint32_t i = 0; same && i < asked_count; i++)
        same = strcmp(config->dpdk_eal_args[i], asked[i]) == 0;
    return same;
}

int eal_start(const struct capture_config *config, struct capture_error_info *error) {
    int code = eal_args_check(config, error);
    if (code != CAPTURE_OK)
        return code;
    pthread_mutex_lock(&lock);
    if (!running)
        code = start_locked(config, error);
    else if (config->dpdk_eal_arg_count > 0 && !asks_the_same(config))
        code = capture_fail(error, CAPTURE_ERR_STATE, "dpdk_eal_args",
                            "dpdk_eal_args differ from those that this process started DPDK with (it can be started once): "
                            "accepted are the same or none");
    pthread_mutex_unlock(&lock);
    return code;
}

bool eal_running(bool *no_huge) {
    pthread_mutex_lock(&lock);
    bool answer = running;
    *no_huge = given.no_huge;
    pthread_mutex_unlock(&lock);
    return answer;
}

static void detach(void *unused) {
    (void)unused;
    rte_thread_unregister();
}

static void make_key(void) {
    pthread_key_create(&key, detach);
}

void eal_attach_thread(void) {
    if (__builtin_expect(attached, 1))
        return;
    attached = true; /* without a place (there are RTE_MAX_LCORE) the thread goes on without a cache */
    if (rte_lcore_id() != LCORE_ID_ANY || rte_thread_register() != 0)
        return;
    pthread_once(&key_once, make_key);
    pthread_setspecific(key, &key);
}
