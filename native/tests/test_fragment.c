/* SPDX-License-Identifier: Apache-2.0 */
/* The fragment cache: later fragments get the ports of their first one, within bounds of time and memory. */
#include "check.h"
#include "flow/fragment_cache.h"
#include "frames.h"

static struct packet fragment(uint8_t kind, uint32_t id, uint64_t ts_ns) {
    struct packet packet = packet_of(1, 0, ts_ns);
    packet.fragment = kind;
    packet.fragment_id = id;
    packet.fragment_protocol = 17;
    packet.key.port[0] = kind == PACKET_FRAGMENT_FIRST ? 4000 : 0;
    packet.key.port[1] = kind == PACKET_FRAGMENT_FIRST ? 53 : 0;
    return packet;
}

static bool completed(struct fragment_cache *cache, struct packet packet) {
    fragment_cache_resolve(cache, &packet);
    if (packet.key.port[0] == 0)
        return false;
    CHECK_EQUAL(4000, packet.key.port[0]);
    CHECK_EQUAL(53, packet.key.port[1]);
    return true;
}

static struct fragment_cache new_cache(void) {
    struct fragment_cache cache;
    CHECK(fragment_cache_init(&cache, 256, 1));
    struct packet first = fragment(PACKET_FRAGMENT_FIRST, 9, SECOND);
    fragment_cache_resolve(&cache, &first);
    return cache;
}

static void a_later_fragment_gets_the_ports_of_its_first_one(void) {
    struct fragment_cache cache = new_cache();
    CHECK(completed(&cache, fragment(PACKET_FRAGMENT_LATER, 9, 2ull * SECOND)));
    CHECK(completed(&cache, fragment(PACKET_FRAGMENT_LATER, 9, 3ull * SECOND)));
    CHECK_EQUAL(2, cache.matched);
    fragment_cache_destroy(&cache);
}

static void a_fragment_of_another_datagram_gets_none_and_is_counted(void) {
    struct fragment_cache cache = new_cache();
    CHECK(!completed(&cache, fragment(PACKET_FRAGMENT_LATER, 10, SECOND)));
    struct packet other = fragment(PACKET_FRAGMENT_LATER, 9, SECOND);
    other.key.vlan_id = 5;
    CHECK(!completed(&cache, other));
    other = fragment(PACKET_FRAGMENT_LATER, 9, SECOND);
    other.fragment_protocol = 6;
    CHECK(!completed(&cache, other));
    other = fragment(PACKET_FRAGMENT_LATER, 9, SECOND);
    other.key.addr[0][15] = 1;
    CHECK(!completed(&cache, other));
    other = fragment(PACKET_FRAGMENT_LATER, 9, SECOND);
    other.key.tunnel_type = 3;
    CHECK(!completed(&cache, other));
    other = fragment(PACKET_FRAGMENT_LATER, 9, SECOND);
    other.key.tunnel_id = 3;
    CHECK(!completed(&cache, other));
    CHECK_EQUAL(6, cache.unmatched);
    fragment_cache_destroy(&cache);
}

static void a_first_fragment_is_forgotten_after_thirty_seconds(void) {
    struct fragment_cache cache = new_cache();
    CHECK(completed(&cache, fragment(PACKET_FRAGMENT_LATER, 9, 31ull * SECOND)));
    CHECK(!completed(&cache, fragment(PACKET_FRAGMENT_LATER, 9, 31ull * SECOND + 1)));
    fragment_cache_destroy(&cache);
}

static void an_ipv6_fragment_gets_the_protocol_behind_its_extension_headers(void) {
    struct fragment_cache cache = new_cache();
    struct packet first = fragment(PACKET_FRAGMENT_FIRST, 11, SECOND), later = fragment(PACKET_FRAGMENT_LATER, 11, SECOND);
    first.key.ip_version = later.key.ip_version = 6;
    first.fragment_protocol = later.fragment_protocol = later.key.protocol = 60;
    fragment_cache_resolve(&cache, &first);
    fragment_cache_resolve(&cache, &later);
    CHECK_EQUAL(17, later.key.protocol);
    CHECK_EQUAL(4000, later.key.port[0]);
    fragment_cache_destroy(&cache);
}

static void a_full_cache_forgets_the_oldest_and_stays_bounded(void) {
    struct fragment_cache cache = new_cache();
    for (uint32_t id = 100; id < 100000; id++) {
        struct packet first = fragment(PACKET_FRAGMENT_FIRST, id, SECOND + id);
        fragment_cache_resolve(&cache, &first);
        CHECK(completed(&cache, fragment(PACKET_FRAGMENT_LATER, id, SECOND + id)));
    }
    CHECK(!completed(&cache, fragment(PACKET_FRAGMENT_LATER, 9, SECOND)));
    CHECK_EQUAL(256 * 64, fragment_cache_bytes(&cache));
    fragment_cache_destroy(&cache);
}

int main(void) {
    RUN(a_later_fragment_gets_the_ports_of_its_first_one);
    RUN(a_fragment_of_another_datagram_gets_none_and_is_counted);
    RUN(a_first_fragment_is_forgotten_after_thirty_seconds);
    RUN(an_ipv6_fragment_gets_the_protocol_behind_its_extension_headers);
    RUN(a_full_cache_forgets_the_oldest_and_stays_bounded);
    return 0;
}
