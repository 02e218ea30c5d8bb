/* SPDX-License-Identifier: Apache-2.0 */
/* Whole captures with the backend "pfring" over a fake libpfring: files to their end, workers under way, names that are refused.
 */
#include "pfring_fake.h"
#include "trace_file.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { FLOWS = 300, PACKETS = 9000, LIVE = 20000 };

static capture_t *capture_device(const char *device, uint32_t workers, const char *filter) {
    struct capture_config config = config_of(device);
    struct capture_flow_config flow_config = {.struct_size = sizeof flow_config, .max_flows = 8192};
    struct capture_error_info error = {0};
    capture_t *capture;
    config.backend = "auto";
    if (!strchr(device, ':'))
        config.backend = "pfring";
    config.workers = workers;
    config.filter = filter;
    int code = capture_init(&config, &capture, &error);
    if (code == CAPTURE_OK)
        code = capture_flow_enable(capture, &flow_config, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    start(capture);
    return capture;
}

static void a_capture_file_is_read_to_its_end_and_metered_like_by_the_file_backend(void) {
    struct trace_file trace = trace_of_flows(FLOWS, PACKETS); /* raw IP: the link type is the file's */
    char device[80];
    snprintf(device, sizeof device, "pcap:%s", trace.path);
    capture_t *reference = capture_of(&trace, (struct capture_options){.filter = "udp port 53 and not host 10.0.0.7"});
    start(reference);
    while (capture_poll(reference, 100) > 0)
        continue;
    capture_stop(reference, true);
    struct capture_stats wanted = stats_of(reference);
    for (uint32_t workers = 0; workers <= 1; workers++) {
        capture_t *capture = capture_device(device, workers, "udp port 53 and not host 10.0.0.7");
        int result;
        while ((result = capture_poll(capture, 100)) > 0)
            continue;
        CHECK_EQUAL(0, result); /* the end, not a failure */
        capture_stop(capture, true);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(PACKETS, stats.received);
        CHECK_EQUAL(wanted.metered, stats.metered);
        CHECK_EQUAL(wanted.metered_octets, stats.metered_octets);
        CHECK_EQUAL(wanted.filtered, stats.filtered);
        CHECK_EQUAL(wanted.flows_total, stats.flows_total);
        CHECK_EQUAL(FLOWS - 1, stats.flows_total);
        capture_destroy(capture);
    }
    capture_destroy(reference);
    trace_forget(&trace);
}

static atomic_bool over;

static void *give_many(void *unused) {
    for (uint32_t i = 0; i < LIVE; i++) {
        give_packet("lo", i % 50, i / 50 & 1, i % 50, now_of(CLOCK_REALTIME));
        if (i % 64 == 0)
            fake->set_dropped("lo", i);
    }
    return unused;
}

static void *take_snapshots(void *capture) {
    uint64_t received = 0;
    while (!atomic_load(&over)) {
        struct capture_stats stats = stats_of(capture);
        CHECK(stats.received >= received);
        received = stats.received;
    }
    return NULL;
}

static void workers_share_a_device_and_every_frame_is_in_the_balance(void) {
    for (uint32_t workers = 0; workers <= 2; workers++) {
        capture_t *capture = capture_device("lo", workers, NULL);
        pthread_t giver, observer;
        fake->set_dropped("lo", 0);
        atomic_store(&over, false);
        pthread_create(&observer, NULL, take_snapshots, capture);
        pthread_create(&giver, NULL, give_many, NULL);
        /* A slow machine (a sanitizer, a busy one) gets on far enough for the stop, which drains for a bounded time. */
        uint64_t until = now_of(CLOCK_MONOTONIC) + 300 * MS;
        while (now_of(CLOCK_MONOTONIC) < until || stats_of(capture).metered < LIVE * 9 / 10)
            CHECK(capture_poll(capture, 10) > 0);
        pthread_join(giver, NULL);
        CHECK_EQUAL(CAPTURE_OK, capture_stop(capture, true)); /* what the rings hold is metered still */
        atomic_store(&over, true);
        pthread_join(observer, NULL);
        struct capture_stats stats = stats_of(capture);
        CHECK_EQUAL(LIVE, stats.metered);
        CHECK_EQUAL(50, stats.flows_total);
        CHECK_EQUAL(0, stats.in_flight);
        /* Each ring of the fake reports what the device has lost. */
        CHECK_EQUAL((LIVE - 1) / 64 * 64 * (workers ? workers : 1), stats.dropped_kernel);
        capture_destroy(capture);
        fake->set_dropped("lo", 0);
        CHECK_EQUAL(0, fake->look("lo").open);
    }
}

static void check_refused(const char *device, const char *backend, int code, const char *text) {
    struct capture_config config = config_of(device);
    struct capture_error_info error = {0};
    char name[16];
    config.backend = backend;
    int found = capture_select_backend(&config, name, &error);
    if (found != code || !strstr(error.message, text))
        fprintf(stderr, "%s: %d %s\n", device, found, error.message);
    CHECK_EQUAL(code, found);
    CHECK(strstr(error.message, text) != NULL);
}

static void names_that_are_no_devices_are_refused_with_those_that_are(void) {
    const char *const names[] = {"xpcap:/etc/hostname", "zc:", "zc:a/b", "zc:a b", ":eth0", "pcap:", "ZC:eth0", "zc:\n"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        check_refused(names[i], "pfring", CAPTURE_ERR_BACKEND, "accepted are eth0, eth0@2 (queue), zc:eth0");
    check_refused("nosuch0", "pfring", CAPTURE_ERR_BACKEND, "interface nosuch0 does not exist");
    check_refused("lo,nosuch0", "pfring", CAPTURE_ERR_BACKEND, "interface nosuch0 does not exist");
    check_refused("pcap:/nosuch/file", "auto", CAPTURE_ERR_BACKEND, "neither a regular file nor a network interface");
    check_refused("pcap:/proc/self/exe", "auto", CAPTURE_ERR_BACKEND, "pcap:/proc/self/exe: unknown file format");
    check_refused("zc:eth7", "afpacket", CAPTURE_ERR_NO_INTERFACE, "interface zc:eth7 does not exist");
    check_refused("zc:eth7", "pcap", CAPTURE_ERR_NO_INTERFACE, "interface zc:eth7 does not exist");
    char longest[200] = "zc:";
    memset(longest + 3, 'x', 190);
    check_refused(longest, "pfring", CAPTURE_ERR_BACKEND, "accepted are eth0");
    check_refused("abcdefghijklmno@1", "afpacket", CAPTURE_ERR_NO_INTERFACE, "does not exist");
}

static void auto_takes_it_for_names_with_a_module_only(void) {
    const char *const names[] = {"zc:eth7", "zc:99@0", "pcap:lo", "pcap:any", "xdp:eth0"};
    struct capture_backend_info backends[16];
    char name[16];
    for (int i = 0; i < 5; i++) {
        struct capture_config config = config_of(names[i]);
        config.backend = NULL;
        CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
        CHECK_TEXT("pfring", name);
    }
    struct capture_config config = config_of("lo");
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
    CHECK_TEXT("pfring", name);
    config.backend = "auto";
    if (capture_select_backend(&config, name, NULL) == CAPTURE_OK) /* else packet sockets are not allowed here */
        CHECK(strcmp(name, "pfring") != 0);
    int count = capture_get_backends("zc:eth7", backends, 16);
    for (int i = 0; i < count && i < 16; i++)
        if (strcmp(backends[i].name, "file") != 0)
            CHECK_EQUAL(strcmp(backends[i].name, "pfring") == 0, backends[i].usable);
}

static void check_not_opened(const char *device, uint32_t queues, int code, const char *field, const char *text) {
    struct capture_config config = config_of(device);
    struct capture_error_info error = {0};
    void *state;
    CHECK_EQUAL(code, pfring_backend.open(&config, 0, queues, &state, &error));
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, text))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, text) != NULL);
    CHECK_EQUAL(0, fake->look(device).open);
}

static void what_the_library_refuses_is_refused_with_its_words(void) {
    check_not_opened("zc:missing", 1, CAPTURE_ERR_IO, "interface", "zc:missing cannot be opened by PF_RING: No such device");
    check_not_opened("zc:locked", 1, CAPTURE_ERR_PERMISSION, "interface", "Operation not permitted");
    check_not_opened("zc:dead", 1, CAPTURE_ERR_IO, "interface", "pfring_enable_ring fails with -1");
    check_not_opened("zc:eth7", 2, CAPTURE_ERR_INVALID, "workers", "workers is 2: device zc:eth7 has no clusters");
}

/* In a namespace of the child's own. 77: none can be made here. */
static int lose_interface(void) {
    struct capture_error_info error = {0};
    struct frame_batch batch;
    int count = 0;
    if (unshare(CLONE_NEWNET) != 0 || system("ip link add jarvis2 type veth peer name jarvis3 && ip link set jarvis2 up") != 0)
        return 77;
    void *state = open_device("jarvis2");
    CHECK_EQUAL(0, pfring_backend.read(state, &batch, 20, &error));
    CHECK_EQUAL(0, system("ip link del jarvis2"));
    for (int turn = 0; turn < 50 && count == 0; turn++)
        count = pfring_backend.read(state, &batch, 20, &error);
    CHECK_EQUAL(CAPTURE_ERR_IO, count);
    CHECK_TEXT("interface jarvis2 is gone", error.message);
    pfring_backend.close(state);
    return 0;
}

static void an_interface_that_goes_away_is_an_error(void) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(lose_interface());
    CHECK_EQUAL(child, waitpid(child, &status, 0));
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        printf("#   not run: it needs root and iproute2\n");
    else
        CHECK_EQUAL(0, WEXITSTATUS(status));
}

int main(void) {
    int obstacle = find_fake();
    if (obstacle)
        return obstacle;
    RUN(a_capture_file_is_read_to_its_end_and_metered_like_by_the_file_backend);
    RUN(workers_share_a_device_and_every_frame_is_in_the_balance);
    RUN(names_that_are_no_devices_are_refused_with_those_that_are);
    RUN(auto_takes_it_for_names_with_a_module_only);
    RUN(what_the_library_refuses_is_refused_with_its_words);
    RUN(an_interface_that_goes_away_is_an_error);
    return 0;
}
