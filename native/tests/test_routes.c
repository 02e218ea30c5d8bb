/* SPDX-License-Identifier: Apache-2.0 */
/* Routes of the kernel in a network namespace of the test's own: read, followed, and looked up while they change. */
#include "check.h"

#include "jarvis_capture.h"
#include "route/kernel_routes.h"
#include "route/routes.h"

#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77, CHANGES = 3 };

static void run(const char *command) {
    int result = system(command);
    if (result != 0)
        fprintf(stderr, "failed: %s\n", command);
    CHECK_EQUAL(0, result);
}

static capture_routes_t *open_routes(void) {
    struct capture_routes_config config = {.struct_size = sizeof config, .kernel = true};
    struct capture_error_info error = {0};
    capture_routes_t *routes = NULL;
    if (capture_routes_open(&config, &routes, &error) != CAPTURE_OK)
        fprintf(stderr, "%s: %s\n", error.field, error.message);
    CHECK(routes);
    return routes;
}

static struct capture_route look(capture_routes_t *routes, const char *text) {
    uint8_t address[16];
    struct capture_route route;
    int version = strchr(text, ':') ? 6 : 4;
    CHECK_EQUAL(1, inet_pton(version == 6 ? AF_INET6 : AF_INET, text, address));
    CHECK_EQUAL(CAPTURE_OK, capture_routes_lookup(routes, address, (uint8_t)version, &route));
    return route;
}

/* next_hop "": on link. */
static void check_route(capture_routes_t *routes, const char *address, const char *next_hop, int prefix, const char *device) {
    struct capture_route route = look(routes, address);
    char text[INET6_ADDRSTRLEN] = "";
    if (route.next_hop_version)
        inet_ntop(route.next_hop_version == 6 ? AF_INET6 : AF_INET, route.next_hop, text, sizeof text);
    CHECK_TEXT(next_hop, text);
    CHECK(route.has_prefix);
    CHECK_EQUAL(prefix, route.prefix_length);
    CHECK_EQUAL(if_nametoindex(device), route.interface_index);
}

static void refresh_after_a_second(capture_routes_t *routes) {
    struct capture_error_info error = {0};
    usleep(1050000);
    CHECK_EQUAL(CAPTURE_OK, capture_routes_refresh(routes, &error));
}

static void routes_of_every_form_are_read(void) {
    run("ip link add left type veth peer name right && ip address add 192.0.2.1/24 dev left"
        " && ip -6 address add 2001:db8::1/64 dev left nodad && ip link set left up && ip link set right up");
    run("ip route add default via 192.0.2.254 metric 100 && ip route add default via 192.0.2.253 metric 50"
        " && ip route add 198.51.100.0/24 nexthop via 192.0.2.7 dev left nexthop via 192.0.2.8 dev left"
        " && ip route add 203.0.113.0/24 via inet6 2001:db8::9 dev left && ip route add blackhole 203.0.113.128/25"
        " && ip route add 10.0.0.0/8 dev left table 77 && ip route add 100.64.0.0/10 dev left"
        " && ip -6 route add default via 2001:db8::fe dev left && ip -6 route add unreachable 2001:db8:bad::/48"
        " && ip -6 route add 2001:db8:77::/48 nexthop via 2001:db8::7 dev left nexthop via 2001:db8::8 dev left");
    capture_routes_t *routes = open_routes();
    check_route(routes, "8.8.8.8", "192.0.2.253", 0, "left");
    check_route(routes, "192.0.2.99", "", 24, "left");
    check_route(routes, "198.51.100.1", "192.0.2.7", 24, "left");
    check_route(routes, "203.0.113.1", "2001:db8::9", 24, "left");
    CHECK(!look(routes, "203.0.113.200").has_prefix);
    check_route(routes, "10.1.2.3", "192.0.2.253", 0, "left"); /* table 77 is not asked */
    check_route(routes, "100.65.0.1", "", 10, "left");
    check_route(routes, "2001:db8:1::1", "2001:db8::fe", 0, "left");
    check_route(routes, "2001:db8::5", "", 64, "left");
    check_route(routes, "2001:db8:77::1", "2001:db8::7", 48, "left");
    CHECK(!look(routes, "2001:db8:bad::1").has_prefix);
    struct capture_route route;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_routes_lookup(routes, (const uint8_t *)"1234", 5, &route));
    capture_routes_release(routes);
}

static void nexthop_objects_are_followed_even_where_routes_say_their_id_alone(void) {
    run("ip nexthop add id 5 via 192.0.2.55 dev left && ip nexthop add id 9 via 192.0.2.59 dev left"
        " && ip nexthop add id 20 group 9/5 && ip route add 172.16.0.0/12 nhid 20 && ip route add 172.32.0.0/12 nhid 5");
    for (int compatible = 1; compatible >= 0; compatible--) {
        run(compatible ? "sysctl -qw net.ipv4.nexthop_compat_mode=1" : "sysctl -qw net.ipv4.nexthop_compat_mode=0");
        capture_routes_t *routes = open_routes();
        check_route(routes, "172.16.1.1", "192.0.2.59", 12, "left");
        check_route(routes, "172.33.1.1", "192.0.2.55", 12, "left");
        run("ip nexthop replace id 9 via 192.0.2.58 dev left");
        refresh_after_a_second(routes);
        check_route(routes, "172.16.1.1", "192.0.2.58", 12, "left");
        run("ip nexthop replace id 9 via 192.0.2.59 dev left");
        capture_routes_release(routes);
    }
    run("sysctl -qw net.ipv4.nexthop_compat_mode=1 && ip nexthop flush >/dev/null 2>&1");
}

static void changes_are_taken_over_at_a_refresh_and_looked_for_once_a_second(void) {
    capture_routes_t *routes = open_routes();
    run("ip route add 10.9.0.0/16 via 192.0.2.9 && ip -6 route add 2001:db8:9::/48 via 2001:db8::9");
    CHECK_EQUAL(CAPTURE_OK, capture_routes_refresh(routes, NULL));
    check_route(routes, "10.9.1.1", "192.0.2.253", 0, "left");
    refresh_after_a_second(routes);
    check_route(routes, "10.9.1.1", "192.0.2.9", 16, "left");
    check_route(routes, "2001:db8:9::1", "2001:db8::9", 48, "left");
    run("ip route del 10.9.0.0/16 && ip -6 route del 2001:db8:9::/48");
    refresh_after_a_second(routes);
    check_route(routes, "10.9.1.1", "192.0.2.253", 0, "left");
    check_route(routes, "2001:db8:9::1", "2001:db8::fe", 0, "left");
    capture_routes_release(routes);
}

struct reading {
    capture_routes_t *routes;
    atomic_bool over;
    uint64_t lookups;
};

/* The address has always a route: by one neighbour or by the other, and never half of both. */
static void *keep_looking(void *argument) {
    struct reading *reading = argument;
    do {
        struct capture_route route = look(reading->routes, "10.77.0.1");
        CHECK(route.has_prefix);
        CHECK(route.prefix_length == 16 ? route.next_hop[3] == 77 : route.prefix_length == 0 && route.next_hop[3] == 253);
        reading->lookups++;
    } while (!atomic_load(&reading->over));
    return NULL;
}

static void lookups_of_other_threads_always_see_a_whole_table(void) {
    struct reading reading = {.routes = open_routes()};
    pthread_t thread;
    capture_routes_retain(reading.routes);
    CHECK_EQUAL(0, pthread_create(&thread, NULL, keep_looking, &reading));
    for (int change = 0; change < CHANGES; change++) {
        run(change % 2 ? "ip route del 10.77.0.0/16" : "ip route add 10.77.0.0/16 via 192.0.2.77");
        refresh_after_a_second(reading.routes);
    }
    check_route(reading.routes, "10.77.0.1", "192.0.2.77", 16, "left");
    atomic_store(&reading.over, true);
    CHECK_EQUAL(0, pthread_join(thread, NULL));
    CHECK(reading.lookups > 0);
    capture_routes_release(reading.routes);
    capture_routes_release(reading.routes);
}

/* IPv4 routes go without a word of their own then. */
static void routes_of_an_interface_that_went_down_are_forgotten(void) {
    capture_routes_t *routes = open_routes();
    run("ip link set left down");
    refresh_after_a_second(routes);
    CHECK(!look(routes, "8.8.8.8").has_prefix);
    CHECK(!look(routes, "192.0.2.99").has_prefix);
    capture_routes_release(routes);
}

static void damaged_messages_are_passed_over(void) {
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        uint8_t attributes[64];
    } message;
    struct kernel_routes routes = {0};
    uint32_t seed = 1;
    for (int round = 0; round < 200000; round++) {
        for (size_t i = 0; i < sizeof message; i++)
            ((uint8_t *)&message)[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
        message.header.nlmsg_type = round % 3 ? RTM_NEWROUTE : RTM_NEWNEXTHOP;
        message.header.nlmsg_len = sizeof message.header + seed % (sizeof message - sizeof message.header + 1);
        message.route.rtm_family = round % 2 ? AF_INET : AF_INET6;
        message.route.rtm_table = RT_TABLE_MAIN;
        message.route.rtm_type = RTN_UNICAST;
        message.route.rtm_tos = message.route.rtm_src_len = 0;
        message.route.rtm_flags = 0;
        for (size_t at = 0; at + 8 <= sizeof message.attributes; at += 8) /* attributes of known types and odd lengths */
            memcpy(message.attributes + at, &(struct rtattr){.rta_len = (uint16_t)(round % 20), .rta_type = seed % 31 + at / 8},
                   4);
        CHECK(kernel_routes_take(&routes, &message.header));
        kernel_routes_concerns(&message.header);
    }
    CHECK(kernel_routes_build(&routes));
    kernel_routes_clear(&routes);
}

static void a_configuration_that_asks_for_nothing_is_refused(void) {
    struct capture_routes_config config = {.struct_size = sizeof config};
    struct capture_error_info error = {0};
    capture_routes_t *routes;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_routes_open(&config, &routes, &error));
    CHECK_TEXT("kernel", error.field);
    config.struct_size = 1;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_routes_open(&config, &routes, &error));
    CHECK_TEXT("struct_size", error.field);
    config.struct_size = sizeof config;
    config.asn_database = "/nowhere/asn.mmdb";
    int code = capture_routes_open(&config, &routes, &error);
    CHECK(code == CAPTURE_ERR_FILE || code == CAPTURE_ERR_BACKEND);
    CHECK_TEXT("asn_database", error.field);
}

int main(void) {
    RUN(damaged_messages_are_passed_over);
    RUN(a_configuration_that_asks_for_nothing_is_refused);
    if (unshare(CLONE_NEWNET) != 0) {
        printf("skipped: network namespaces cannot be made here\n");
        return SKIPPED;
    }
    run("ip link set lo up");
    RUN(routes_of_every_form_are_read);
    RUN(nexthop_objects_are_followed_even_where_routes_say_their_id_alone);
    RUN(changes_are_taken_over_at_a_refresh_and_looked_for_once_a_second);
    RUN(lookups_of_other_threads_always_see_a_whole_table);
    RUN(routes_of_an_interface_that_went_down_are_forgotten);
    return 0;
}
