/* SPDX-License-Identifier: Apache-2.0 */
/* AS databases: a MaxMind DB made here byte by byte (MaxMind DB file format 2.0), read whole, and damaged in every way. */
#include "check.h"

#include "route/asn.h"

#include <sys/mman.h>
#include <unistd.h>

enum { SKIPPED = 77, DAMAGES = 10000, BYTES_MAX = 2048, PREFIX = 24, NODE_BYTES = 6 };

/* libmaxminddb 1.7.1 forgets what it had read of metadata that it then refuses. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libmaxminddb";
}

struct bytes {
    uint8_t data[BYTES_MAX];
    uint32_t length;
};

static void put(struct bytes *bytes, const void *data, uint32_t length) {
    CHECK(bytes->length + length <= BYTES_MAX);
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

static void put_text(struct bytes *bytes, const char *text) {
    uint8_t length = (uint8_t)strlen(text), control[2] = {0x40 | (length < 29 ? length : 29), (uint8_t)(length - 29)};
    put(bytes, control, length < 29 ? 1 : 2);
    put(bytes, text, length);
}

/* Types 5 (16 bits), 6 (32 bits), and 9 (64 bits, an extended type). */
static void put_number(struct bytes *bytes, uint8_t type, uint64_t value) {
    uint8_t width = type == 5 ? 2 : type == 6 ? 4 : 8, control[2] = {type < 8 ? (uint8_t)(type << 5 | width) : width, type - 7};
    put(bytes, control, type < 8 ? 1 : 2);
    for (int shift = width * 8 - 8; shift >= 0; shift -= 8)
        put(bytes, &(uint8_t){(uint8_t)(value >> shift)}, 1);
}

static void put_record(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 16);
    at[1] = (uint8_t)(value >> 8);
    at[2] = (uint8_t)value;
}

/* A tree that holds one network: `prefix` bits of the address lead to the entry, all else to nothing. */
static void put_tree(struct bytes *bytes, const uint8_t *address, uint8_t prefix) {
    for (uint8_t depth = 0; depth < prefix; depth++) {
        uint8_t node[NODE_BYTES];
        uint32_t onward = depth + 1 < prefix ? depth + 1u : prefix + 16u; /* entry at offset 0 of the data section */
        bool right = address[depth / 8] & (0x80 >> depth % 8);
        put_record(node + (right ? 3 : 0), onward);
        put_record(node + (right ? 0 : 3), prefix); /* the number of nodes: nothing is there */
        put(bytes, node, sizeof node);
    }
}

static struct bytes database(uint8_t ip_version, const uint8_t *address, uint8_t prefix, const char *key, uint32_t number) {
    static const uint8_t separator[16];
    struct bytes bytes = {.length = 0};
    put_tree(&bytes, address, prefix);
    put(&bytes, separator, sizeof separator);
    put(&bytes, "\xe1", 1); /* a map with one entry */
    put_text(&bytes, key);
    put_number(&bytes, 6, number);
    put(&bytes, "\xab\xcd\xefMaxMind.com\xe9", 15);
    put_text(&bytes, "node_count");
    put_number(&bytes, 6, prefix);
    put_text(&bytes, "record_size");
    put_number(&bytes, 5, 24);
    put_text(&bytes, "ip_version");
    put_number(&bytes, 5, ip_version);
    put_text(&bytes, "database_type");
    put_text(&bytes, "Test-ASN");
    put_text(&bytes, "languages");
    put(&bytes, "\x00\x04", 2); /* an empty array */
    put_text(&bytes, "binary_format_major_version");
    put_number(&bytes, 5, 2);
    put_text(&bytes, "binary_format_minor_version");
    put_number(&bytes, 5, 0);
    put_text(&bytes, "build_epoch");
    put_number(&bytes, 9, 1700000000);
    put_text(&bytes, "description");
    put(&bytes, "\xe0", 1);
    return bytes;
}

static char path[64];
static int file; /* in memory: thousands of versions are written */

static void write_file(const struct bytes *bytes) {
    CHECK_EQUAL(0, ftruncate(file, 0));
    CHECK_EQUAL(bytes->length, pwrite(file, bytes->data, bytes->length, 0));
}

static int load(const struct bytes *bytes, struct asn_tables *tables, struct capture_error_info *error) {
    write_file(bytes);
    return asn_load(path, tables, error);
}

static void a_network_is_found_by_its_first_and_last_address(void) {
    const uint8_t first[16] = {192, 0, 2, 0}, last[16] = {192, 0, 2, 255}, behind[16] = {192, 0, 3, 0};
    const uint8_t ipv6[16] = {0x20, 0x01, 0x0d, 0xb8}, other[16] = {0x20, 0x01, 0x0d, 0xb9};
    struct asn_tables tables = {{0}};
    struct capture_error_info error = {0};
    uint8_t length;
    struct bytes bytes = database(4, first, PREFIX, "autonomous_system_number", 64500);
    CHECK_EQUAL(CAPTURE_OK, load(&bytes, &tables, &error));
    CHECK_EQUAL(64500, route_table_lookup(tables.tables[0], first, &length));
    CHECK_EQUAL(64500, route_table_lookup(tables.tables[0], last, &length));
    CHECK_EQUAL(PREFIX, length);
    CHECK_EQUAL(0, route_table_lookup(tables.tables[0], behind, &length));
    bytes = database(6, ipv6, 32, "autonomous_system_number", 4200000000u);
    CHECK_EQUAL(CAPTURE_OK, load(&bytes, &tables, &error));
    CHECK_EQUAL(4200000000u, route_table_lookup(tables.tables[1], ipv6, &length));
    CHECK_EQUAL(32, length);
    CHECK_EQUAL(0, route_table_lookup(tables.tables[1], other, &length));
    CHECK_EQUAL(0, route_table_lookup(tables.tables[0], first, &length));
    asn_clear(&tables);
}

static void a_tree_that_goes_on_behind_the_last_bit_is_refused(void) {
    const uint8_t address[16] = {192, 0, 2, 0};
    struct asn_tables tables = {{0}};
    struct capture_error_info error = {0};
    struct bytes bytes = database(4, address, PREFIX, "autonomous_system_number", 64500);
    put_record(bytes.data + (PREFIX - 1) * NODE_BYTES, 1); /* the last node leads back to the second */
    CHECK_EQUAL(CAPTURE_ERR_FILE, load(&bytes, &tables, &error));
    CHECK_TEXT("asn_database", error.field);
    CHECK(strstr(error.message, "its search tree is not a tree"));
    CHECK(!tables.tables[0]);
}

/* So many that their bytes, counted in 32 bits, are as few as the file's. */
static void more_nodes_than_the_file_has_room_for_are_refused(void) {
    const uint8_t address[16] = {192, 0, 2, 0};
    struct asn_tables tables = {{0}};
    struct capture_error_info error = {0};
    struct bytes bytes = database(4, address, PREFIX, "autonomous_system_number", 64500);
    uint8_t *count = memmem(bytes.data, bytes.length, "node_count", 10);
    CHECK(count);
    count[11] |= 0x80; /* behind the key and the control byte of a 32-bit number */
    CHECK_EQUAL(CAPTURE_ERR_FILE, load(&bytes, &tables, &error));
    CHECK(strstr(error.message, "more nodes than the file has room for"));
}

static void other_databases_are_refused_by_their_name(void) {
    const uint8_t address[16] = {192, 0, 2, 0};
    struct asn_tables tables = {{0}};
    struct capture_error_info error = {0};
    struct bytes bytes = database(4, address, PREFIX, "geoname_id", 64500);
    CHECK_EQUAL(CAPTURE_ERR_INVALID, load(&bytes, &tables, &error));
    CHECK(strstr(error.message, "is a Test-ASN and holds no autonomous_system_number"));
}

/* Whatever a file says: it is read to tables, or refused with what was there before left alone. The sanitizers watch. */
static void damaged_files_are_read_or_refused(void) {
    const uint8_t address[16] = {192, 0, 2, 0};
    uint32_t seed = 1, refused = 0;
    for (uint32_t round = 0; round < DAMAGES; round++) {
        struct bytes bytes = database(round % 2 ? 4 : 6, address, PREFIX, "autonomous_system_number", 64500);
        for (uint32_t damages = 1 + round % 4; damages > 0; damages--) {
            seed = seed * 1664525u + 1013904223u;
            bytes.data[(seed >> 8) % bytes.length] = (uint8_t)(round % 3 ? seed >> 24 : 1u << (seed >> 29));
        }
        if (round % 16 == 0)
            bytes.length -= (seed >> 8) % bytes.length;
        struct asn_tables tables = {{0}};
        struct capture_error_info error = {0};
        int code = load(&bytes, &tables, &error);
        CHECK(code == CAPTURE_OK || code == CAPTURE_ERR_FILE || code == CAPTURE_ERR_INVALID);
        CHECK((code == CAPTURE_OK) == (tables.tables[0] && tables.tables[1]));
        refused += code != CAPTURE_OK;
        asn_clear(&tables);
    }
    CHECK(refused > DAMAGES / 10 && refused < DAMAGES);
}

int main(void) {
    file = memfd_create("test_asn", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    struct asn_tables tables = {{0}};
    if (asn_load("/nowhere", &tables, NULL) == CAPTURE_ERR_BACKEND) {
        printf("skipped: built without libmaxminddb\n");
        return SKIPPED;
    }
    RUN(a_network_is_found_by_its_first_and_last_address);
    RUN(a_tree_that_goes_on_behind_the_last_bit_is_refused);
    RUN(more_nodes_than_the_file_has_room_for_are_refused);
    RUN(other_databases_are_refused_by_their_name);
    RUN(damaged_files_are_read_or_refused);
    close(file);
    return 0;
}
