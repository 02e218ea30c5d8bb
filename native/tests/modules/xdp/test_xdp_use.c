/* SPDX-License-Identifier: Apache-2.0 */
/* Which interfaces backend "xdp" takes and which it leaves alone, its receive queues, and what is left of it after a stop and a
 * kill. Needs root and iproute2; else skips. */
#include "xdp_link.h"

#include <signal.h>
#include <sys/wait.h>

static bool has_program(const char *interface) {
    char command[96];
    snprintf(command, sizeof command, "ip link show %s | grep -q 'prog/xdp'", interface);
    return system(command) == 0;
}

static void the_program_is_there_while_capturing_and_gone_after(void) {
    struct capture_config config = config_for("jarvis0");
    CHECK(!has_program("jarvis0"));
    void *state = open_backend(xdp, &config);
    CHECK(has_program("jarvis0"));
    struct capture_config second = config_for("jarvis0");
    struct capture_error_info error = {0};
    void *other;
    CHECK_EQUAL(CAPTURE_ERR_BACKEND, xdp->open(&second, 0, 1, &other, &error));
    CHECK_TEXT("interface jarvis0 has an XDP program already: it takes one", error.message);
    CHECK(has_program("jarvis0"));
    xdp->close(state);
    CHECK(!has_program("jarvis0"));
}

static void a_killed_process_leaves_no_program_behind_and_the_host_gets_its_frames_again(void) {
    int ready[2];
    CHECK_EQUAL(0, pipe(ready));
    pid_t child = fork();
    if (child == 0) {
        struct capture_config config = config_for("jarvis0");
        void *state = NULL;
        char opened = xdp->open(&config, 0, 1, &state, NULL) == CAPTURE_OK ? 'y' : 'n';
        if (write(ready[1], &opened, 1) == 1)
            pause();
        _exit(1);
    }
    char opened = 'n';
    CHECK_EQUAL(1, read(ready[0], &opened, 1));
    CHECK_EQUAL('y', opened);
    CHECK(has_program("jarvis0"));
    CHECK_EQUAL(0, kill(child, SIGKILL));
    CHECK_EQUAL(child, waitpid(child, NULL, 0));
    for (int wait = 0; wait < 200 && has_program("jarvis0"); wait++)
        usleep(10000);
    CHECK(!has_program("jarvis0"));
    struct capture_config config = config_for("jarvis0");
    void *state = open_backend(&afpacket_backend, &config);
    int sender = sender_on("jarvis1");
    for (int j = 0; j < 10; j++)
        send_frame(sender, 60, 1, 2, -1);
    CHECK_EQUAL(10, drain(&afpacket_backend, state, NULL, NULL));
    close(sender);
    afpacket_backend.close(state);
    close(ready[0]);
    close(ready[1]);
}

static void check_refused(const struct capture_config *config, const char *field, const char *text) {
    struct capture_error_info error = {0};
    char name[16];
    CHECK(capture_select_backend(config, name, &error) < 0);
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, text))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, text) != NULL);
}

static void check_taken(struct capture_config config, const char *backend, const char *expected) {
    char name[16] = "";
    struct capture_error_info error = {0};
    config.backend = backend;
    int code = capture_select_backend(&config, name, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    CHECK_TEXT(expected, name);
}

/* What makes the host use the interface, and what undoes it; what is said of it. */
static const struct use {
    const char *make, *undo, *said;
} uses[] = {
    {"ip address add 10.1.2.3/24 dev jarvis0", "ip address flush dev jarvis0", "interface jarvis0 carries the address 10.1.2.3"},
    {"ip route add default dev jarvis0", "ip route delete default", "a default route leaves by interface jarvis0"},
    {"ip route add default nexthop dev jarvis0 nexthop dev jarvis1", "ip route delete default",
     "a default route leaves by interface jarvis0"},
    {"echo 0 > /proc/sys/net/ipv6/conf/jarvis0/disable_ipv6 && ip address add fd00::1/64 dev jarvis0 nodad",
     "echo 1 > /proc/sys/net/ipv6/conf/jarvis0/disable_ipv6", "interface jarvis0 carries the address f"},
    {"ip link add jarvisbr type bridge && ip link set jarvis0 master jarvisbr", "ip link delete jarvisbr",
     "interface jarvis0 is a port of another"},
    {"ip link add jarvisup link jarvis0 type macvlan", "ip link delete jarvisup",
     "interface jarvis0 carries the device jarvisup"},
};

static void an_interface_that_the_host_uses_is_taken_only_when_asked_by_name_and_exclusive(void) {
    int tried = 0;
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++) {
        if (system(uses[i].make) != 0) {
            printf("#   left out, this kernel cannot: %s\n", uses[i].make);
            continue;
        }
        struct capture_config config = config_for("jarvis0");
        check_taken(config, NULL, "afpacket");
        config.backend = "xdp";
        check_refused(&config, "exclusive", "exclusive is false: ");
        check_refused(&config, "exclusive", uses[i].said);
        config.exclusive = true;
        check_taken(config, "auto", "afpacket");
        check_taken(config, "xdp", "xdp");
        struct capture_backend_info backends[8];
        CHECK_EQUAL(5, capture_get_backends("jarvis0", backends, 8));
        CHECK_TEXT("xdp", backends[0].name);
        CHECK(backends[0].usable && strstr(backends[0].reason, "only with exclusive: ") &&
              strstr(backends[0].reason, uses[i].said));
        run(uses[i].undo);
        tried++;
    }
    CHECK(tried >= 2);
    check_taken(config_for("jarvis0"), NULL, "xdp");
}

static void what_the_backend_cannot_do_is_refused_by_field_and_left_to_another_by_auto(void) {
    struct capture_config config = config_for("jarvis0");
    config.workers = 3;
    check_taken(config, NULL, "afpacket");
    config.backend = "xdp";
    check_refused(&config, "workers",
                  "workers is 3: interface jarvis0 has 1 receive queues, accepted with backend xdp are 0 to 1");
    config.workers = 1;
    config.timestamp_source = CAPTURE_TIMESTAMP_HARDWARE;
    check_refused(&config, "timestamp_source", "timestamp_source is 2 (hardware)");
    for (uint32_t source = CAPTURE_TIMESTAMP_PTP; source <= CAPTURE_TIMESTAMP_NTP; source++) {
        config.timestamp_source = source;
        check_taken(config, "xdp", "xdp");
    }
    config.timestamp_source = CAPTURE_TIMESTAMP_KERNEL;
    check_taken(config, "xdp", "xdp");
    config = config_for("lo");
    config.backend = "xdp";
    check_refused(&config, "backend", "interface lo is not Ethernet");
    check_taken(config, "auto", "afpacket");
    run("ip link set jarvis0 mtu 3819");
    config.interface = "jarvis0";
    check_refused(&config, "backend", "has MTU 3819: a frame must fit into a page, accepted is up to 3818");
    check_taken(config, "auto", "afpacket");
    run("ip link set jarvis0 mtu 1500");
    config.interface = "jarvisdown";
    check_refused(&config, "interface", "interface jarvisdown is down");
}

enum { QUEUES = 4 };

static void send_some(const char *interface) {
    int sender = sender_on(interface);
    for (uint16_t port = 1; port <= 500; port++)
        send_frame(sender, 60, port, 9, -1);
    close(sender);
}

static void every_receive_queue_has_its_socket_however_many_workers_there_are(void) {
    run("ip link add jarvisq0 numrxqueues 4 numtxqueues 4 type veth peer name jarvisq1 numrxqueues 4 numtxqueues 4");
    run("ip link set jarvisq0 up && ip link set jarvisq1 up");
    for (uint32_t workers = 1; workers <= QUEUES; workers++) {
        struct capture_config config = config_for("jarvisq0");
        config.workers = workers;
        config.backend = "xdp";
        check_taken(config, "xdp", "xdp");
        void *states[QUEUES];
        for (uint32_t i = 0; i < workers; i++)
            CHECK_EQUAL(CAPTURE_OK, xdp->open(&config, i, workers, &states[i], NULL));
        char text[256];
        xdp->describe(states[0], text, sizeof text);
        CHECK(strstr(text, workers == 1 ? "4 receive queues" : workers == 4 ? "1 receive queue " : "2 receive queues") != NULL);
        send_some("jarvisq1");
        uint64_t total = 0;
        for (uint32_t i = 0; i < workers; i++)
            total += drain(xdp, states[i], NULL, NULL);
        CHECK_EQUAL(500, total);
        for (uint32_t i = 0; i < workers; i++)
            xdp->close(states[i]);
        CHECK(!has_program("jarvisq0"));
    }
    run("ip link delete jarvisq0");
}

int main(void) {
    int obstacle = prepare_xdp_link();
    if (obstacle)
        return obstacle;
    RUN(the_program_is_there_while_capturing_and_gone_after);
    RUN(a_killed_process_leaves_no_program_behind_and_the_host_gets_its_frames_again);
    RUN(an_interface_that_the_host_uses_is_taken_only_when_asked_by_name_and_exclusive);
    RUN(what_the_backend_cannot_do_is_refused_by_field_and_left_to_another_by_auto);
    RUN(every_receive_queue_has_its_socket_however_many_workers_there_are);
    return 0;
}
