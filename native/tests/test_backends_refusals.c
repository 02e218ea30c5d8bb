/* SPDX-License-Identifier: Apache-2.0 */
/* Which live backend is chosen, what is refused and why, and interfaces that fail during a capture. Needs root and iproute2; else
 * skips. */
#include "live_link.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void check_refused(const struct capture_backend_ops *ops, const struct capture_config *config, int code, const char *field,
                          const char *message) {
    struct capture_error_info error = {0};
    void *state;
    CHECK_EQUAL(code, ops->open(config, 0, 1, &state, &error));
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, message))
        fprintf(stderr, "%s: %s\n", ops->name, error.message);
    CHECK(strstr(error.message, message) != NULL);
}

static void what_an_interface_does_not_have_is_refused_by_name(void) {
    for (int i = 0; i < 2; i++) {
        struct capture_config config = config_for("jarvis0");
        config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
        check_refused(live_backends[i], &config, CAPTURE_ERR_INVALID, "timestamp_source", "no hardware timestamps");
        config = config_for("nosuch0");
        check_refused(live_backends[i], &config, CAPTURE_ERR_NO_INTERFACE, "interface", "interface nosuch0 does not exist");
        config = config_for("jarvisdown");
        check_refused(live_backends[i], &config, CAPTURE_ERR_IO, "interface", "interface jarvisdown is down");
    }
    struct capture_config config = config_for("jarvis0");
    config.buffer_size_mb = 8192;
    check_refused(&pcap_backend, &config, CAPTURE_ERR_INVALID, "buffer_size_mb", "with backend pcap accepted are 64 to 2047");
}

static void auto_takes_afpacket_where_it_can_and_pcap_where_not(void) {
    char name[16];
    struct capture_config config = config_for("jarvis0");
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
    CHECK_TEXT("afpacket", name);
    config = config_for("any");
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, NULL));
    CHECK_TEXT("pcap", name);
    void *state = open_backend(&pcap_backend, &config);
    int sender = sender_on("jarvis1");
    send_frame(sender, 60, 1, 2, -1);
    CHECK_EQUAL(2, drain(&pcap_backend, state, NULL, NULL)); /* out of one end, into the other */
    close(sender);
    pcap_backend.close(state);
    config.workers = 2;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_select_backend(&config, name, NULL));
}

static void an_interface_that_is_down_is_refused_before_anything_is_opened(void) {
    struct capture_config config = config_for("jarvisdown");
    struct capture_error_info error = {0};
    char name[16];
    CHECK_EQUAL(CAPTURE_ERR_IO, capture_select_backend(&config, name, &error));
    CHECK_TEXT("interface", error.field);
    CHECK(strstr(error.message, "is down: bring it up first") != NULL);
    struct capture_backend_info backends[4];
    CHECK_EQUAL(4, capture_get_backends("jarvisdown", backends, 4));
    CHECK(!backends[0].usable && !backends[1].usable);
}

static void without_cap_net_raw_the_error_says_so(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK_EQUAL(0, setuid(65534));
        struct capture_config config = config_for("jarvis0");
        struct capture_error_info error = {0};
        char name[16];
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, capture_select_backend(&config, name, &error));
        CHECK(strstr(error.message, "afpacket: CAP_NET_RAW is missing; pcap: CAP_NET_RAW is missing") != NULL);
        struct capture_backend_info backends[4];
        CHECK_EQUAL(4, capture_get_backends("jarvis0", backends, 4));
        CHECK(!backends[0].usable && !backends[1].usable);
        void *state;
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, afpacket_backend.open(&config, 0, 1, &state, NULL));
        CHECK_EQUAL(CAPTURE_ERR_PERMISSION, pcap_backend.open(&config, 0, 1, &state, NULL));
        _exit(0);
    }
    int status;
    CHECK_EQUAL(child, waitpid(child, &status, 0));
    CHECK_EQUAL(0, status);
}

static void drop_net_admin(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    CHECK_EQUAL(0, syscall(SYS_capget, &header, data));
    data[0].effective &= ~(1u << CAP_NET_ADMIN);
    CHECK_EQUAL(0, syscall(SYS_capset, &header, data));
}

static void busy_polling_needs_cap_net_admin_and_says_so(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        drop_net_admin();
        struct capture_config config = config_for("jarvis0");
        afpacket_backend.close(open_backend(&afpacket_backend, &config));
        config.busy_poll_us = 50;
        check_refused(&afpacket_backend, &config, CAPTURE_ERR_PERMISSION, "busy_poll_us",
                      "busy_poll_us is 50: the kernel refuses it on interface jarvis0: CAP_NET_ADMIN is missing");
        _exit(0);
    }
    int status;
    CHECK_EQUAL(child, waitpid(child, &status, 0));
    CHECK_EQUAL(0, status);
}

static void a_backend_that_cannot_busy_poll_is_refused_with_it_and_passed_by(void) {
    struct capture_config config = config_for("jarvis0");
    struct capture_error_info error = {0};
    char name[16];
    config.busy_poll_us = 50;
    CHECK_EQUAL(CAPTURE_OK, capture_select_backend(&config, name, &error));
    CHECK_TEXT("afpacket", name);
    config.backend = "pcap";
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_select_backend(&config, name, &error));
    CHECK_TEXT("busy_poll_us", error.field);
    CHECK_TEXT("busy_poll_us is 50: with backend pcap accepted is 0 (afpacket and xdp: to 1000)", error.message);
}

/* The error may come once what the ring held was read; one that goes may be seen to go down first. */
static void check_failure(const struct capture_backend_ops *ops, void *state, int code, const char *word) {
    struct frame_batch batch;
    struct capture_error_info error = {0};
    int count = 0;
    for (int turn = 0; turn < 50 && (count >= 0 || (count == BACKEND_DOWN && code != BACKEND_DOWN)); turn++) {
        count = ops->read(state, &batch, 100, &error);
        ops->release(state);
    }
    CHECK_EQUAL(code, count);
    printf("#   %s: %s\n", ops->name, error.message);
    CHECK(strstr(error.message, word) != NULL);
    struct backend_stats stats;
    ops->stats(state, &stats);
}

/* The first frames may be lost: a link has its carrier a moment after it is up. */
static void check_delivery(const struct capture_backend_ops *ops, void *state) {
    struct frame_batch batch;
    struct capture_error_info error = {0};
    int sender = sender_on("jarvis3"), count = 0;
    for (int turn = 0; turn < 20 && count <= 0; turn++) {
        send_frame(sender, 60, 1, 2, -1);
        count = ops->read(state, &batch, 100, &error);
    }
    CHECK(count > 0);
    ops->release(state);
    close(sender);
}

static void an_interface_that_is_down_is_told_and_delivers_again_when_it_is_up_and_one_that_is_gone_is_an_error(void) {
    for (int i = 0; i < 2; i++) {
        run("ip link add jarvis2 type veth peer name jarvis3 && ip link set jarvis2 up && ip link set jarvis3 up");
        await_running("jarvis3");
        struct capture_config config = config_for("jarvis2");
        void *state = open_backend(live_backends[i], &config);
        run("ip link set jarvis2 down");
        check_failure(live_backends[i], state, BACKEND_DOWN, "interface jarvis2 went down");
        run("ip link set jarvis2 up");
        await_running("jarvis3");
        check_delivery(live_backends[i], state);
        run("ip link del jarvis2");
        check_failure(live_backends[i], state, CAPTURE_ERR_IO, "interface");
        live_backends[i]->close(state);
    }
}

int main(void) {
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    RUN(what_an_interface_does_not_have_is_refused_by_name);
    RUN(auto_takes_afpacket_where_it_can_and_pcap_where_not);
    RUN(an_interface_that_is_down_is_refused_before_anything_is_opened);
    RUN(without_cap_net_raw_the_error_says_so);
    RUN(busy_polling_needs_cap_net_admin_and_says_so);
    RUN(a_backend_that_cannot_busy_poll_is_refused_with_it_and_passed_by);
    RUN(an_interface_that_is_down_is_told_and_delivers_again_when_it_is_up_and_one_that_is_gone_is_an_error);
    return 0;
}
