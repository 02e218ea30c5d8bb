/* SPDX-License-Identifier: Apache-2.0 */
/* Next hops and prefix lengths in records of profile full, from routes of a network namespace of the test's own. */
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>

#include "export_config.h"
#include "export_decoder.h"

enum { SKIPPED = 77, MESSAGES = 16 };

static uint8_t out[65536];
static struct capture_export_message messages[MESSAGES];

static void run(const char *command) {
    int result = system(command);
    if (result != 0)
        fprintf(stderr, "failed: %s\n", command);
    CHECK_EQUAL(0, result);
}

static capture_routes_t *open_routes(void) {
    struct capture_routes_config config = {.struct_size = sizeof(config), .kernel = true};
    struct capture_error_info error = {0};
    capture_routes_t *routes;
    CHECK_EQUAL(CAPTURE_OK, capture_routes_open(&config, &routes, &error));
    return routes;
}

static struct capture_flow flow_between(const char *source, const char *destination) {
    struct capture_flow flow = {.fwd_packets = 1, .fwd_octets = 40, .rev_packets = 1, .rev_octets = 40, .ip_protocol = 6};
    flow.ip_version = strchr(source, ':') ? 6 : 4;
    int family = flow.ip_version == 6 ? AF_INET6 : AF_INET;
    CHECK_EQUAL(1, inet_pton(family, source, flow.src_addr));
    CHECK_EQUAL(1, inet_pton(family, destination, flow.dst_addr));
    return flow;
}

/* What the records of a run said, in their order: next hop, source and destination prefix length. */
struct seen {
    uint32_t count;
    char text[8][80];
};

static void see(void *context, const struct decoded_template *template, const struct decoded_value *values) {
    struct seen *seen = context;
    bool v6 = decoded_find(template, values, 0, 62) != NULL;
    const struct decoded_value *hop = decoded_find(template, values, 0, v6 ? 62 : 15);
    const struct decoded_value *from = decoded_find(template, values, 0, v6 ? 29 : 9);
    const struct decoded_value *to = decoded_find(template, values, 0, v6 ? 30 : 13);
    const struct decoded_value *source_as = decoded_find(template, values, 0, 16);
    CHECK(hop && from && to && source_as && decoded_find(template, values, 0, 17));
    CHECK_EQUAL(0, decoded_number(source_as->at, 4)); /* the kernel knows none */
    char address[INET6_ADDRSTRLEN];
    inet_ntop(v6 ? AF_INET6 : AF_INET, hop->at, address, sizeof(address));
    CHECK(seen->count < 8);
    snprintf(seen->text[seen->count++], sizeof(seen->text[0]), "%s %u %u", address, from->at[0], to->at[0]);
}

static struct seen export_flows(struct capture_export_config config, const struct capture_flow *flows, uint32_t count) {
    static struct decoder decoder;
    struct seen seen = {0};
    uint32_t taken;
    config.profile = CAPTURE_EXPORT_FULL;
    capture_exporter_t *exporter = exporter_of(config);
    capture_routes_release(config.routes); /* the exporter keeps them */
    memset(&decoder, 0, sizeof(decoder));
    CHECK_EQUAL(1, capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES));
    CHECK(decoder_message(&decoder, out, messages[0].length));
    decoder.record = see;
    decoder.context = &seen;
    CHECK_EQUAL(1, capture_exporter_write(exporter, flows, NULL, count, &taken, out, sizeof(out), messages, MESSAGES, true));
    CHECK(decoder_message(&decoder, out, messages[0].length));
    capture_exporter_destroy(exporter);
    return seen;
}

static void each_record_has_the_next_hop_of_its_own_direction(void) {
    const struct capture_flow flows[] = {flow_between("10.77.1.2", "10.88.3.4"), flow_between("2001:db8:77::1", "2001:db8:88::1"),
                                         flow_between("10.99.0.1", "10.77.0.1")};
    for (uint32_t protocol = 2; protocol <= 3; protocol++) {
        struct seen seen = export_flows((struct capture_export_config){.protocol = protocol, .routes = open_routes()}, flows, 3);
        CHECK_EQUAL(6, seen.count);
        CHECK_TEXT("192.0.2.88 16 24", seen.text[0]);
        CHECK_TEXT("192.0.2.77 24 16", seen.text[1]);
        CHECK_TEXT("2001:db8::88 48 64", seen.text[2]);
        CHECK_TEXT("2001:db8::77 64 48", seen.text[3]);
        CHECK_TEXT("192.0.2.77 16 16", seen.text[4]);
        CHECK_TEXT("0.0.0.0 16 16", seen.text[5]); /* by way of an IPv6 neighbour: no room for its address */
    }
}

static void a_biflow_has_the_forward_directions_next_hop(void) {
    const struct capture_flow flow = flow_between("10.77.1.2", "10.88.3.4");
    struct seen seen =
        export_flows((struct capture_export_config){.protocol = 3, .biflow = true, .routes = open_routes()}, &flow, 1);
    CHECK_EQUAL(1, seen.count);
    CHECK_TEXT("192.0.2.88 16 24", seen.text[0]);
}

static void what_has_no_route_is_0(void) {
    const struct capture_flow flow = flow_between("10.1.1.2", "10.2.3.4");
    struct seen seen = export_flows((struct capture_export_config){.protocol = 3, .routes = open_routes()}, &flow, 1);
    CHECK_TEXT("0.0.0.0 0 0", seen.text[0]);
    CHECK_TEXT("0.0.0.0 0 0", seen.text[1]);
}

int main(void) {
    if (unshare(CLONE_NEWNET) != 0) {
        fprintf(stderr, "skipped: no network namespace of our own: %s\n", strerror(errno));
        return SKIPPED;
    }
    run("ip link set lo up && ip link add out type veth peer name peer && ip link set out up && ip link set peer up && ip "
        "address add 192.0.2.1/24 dev out"
        " && ip -6 address add 2001:db8::1/64 dev out nodad"
        " && ip route add 10.77.0.0/16 via 192.0.2.77 && ip route add 10.88.3.0/24 via 192.0.2.88"
        " && ip route add 10.99.0.0/16 via inet6 2001:db8::99 dev out"
        " && ip -6 route add 2001:db8:77::/48 via 2001:db8::77 && ip -6 route add 2001:db8:88::/64 via 2001:db8::88");
    RUN(each_record_has_the_next_hop_of_its_own_direction);
    RUN(a_biflow_has_the_forward_directions_next_hop);
    RUN(what_has_no_route_is_0);
    return 0;
}
