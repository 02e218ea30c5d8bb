/* SPDX-License-Identifier: Apache-2.0 */
#include "route/asn.h"

#include <stdio.h>
#include <sys/stat.h>

#include "error.h"

#ifdef JARVIS_MAXMINDDB
#include <errno.h>
#include <fcntl.h>
#include <maxminddb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>
#endif

struct asn_file asn_file_at(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0)
        return (struct asn_file){0};
    return (struct asn_file){.device = status.st_dev,
                             .inode = status.st_ino,
                             .size = (uint64_t)status.st_size,
                             .modified_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec};
}

void asn_clear(struct asn_tables *tables) {
    for (int family = 0; family < 2; family++)
        route_table_free(tables->tables[family]);
    *tables = (struct asn_tables){0};
}

#ifndef JARVIS_MAXMINDDB

int asn_load(const char *path, struct asn_tables *tables, struct capture_error_info *error) {
    (void)tables;
    return capture_fail(error, CAPTURE_ERR_BACKEND, "asn_database",
                        "asn_database is %s: this library was built without libmaxminddb and reads no AS database", path);
}

#else

enum {
    FILE_BYTES_MAX = 1 << 30, /* GeoLite2-ASN has 10 MB; keeps a mistaken path from filling memory */
    VISITS_PER_NODE = 4,      /* of a sound tree's nodes each is met once, IPv4's again under its aliases */
};

/* A walk over the search tree: to every network once. */
struct walk {
    MMDB_s database;
    struct route_list lists[2];
    uint64_t visits;
    uint8_t address[16]; /* of the node at hand */
    uint8_t start;       /* depth that the family's addresses begin at: 96 for IPv4 in a tree of IPv6 */
    bool is_ipv6;
    bool any;                /* a network with an AS number was met */
    uint32_t offset, number; /* of the last entry read: neighbours often share one */
    const char *damage;      /* what is wrong, NULL: nothing so far */
    bool full;               /* no memory */
};

/* Copies the file to memory that nobody else can change, so that its being cut meanwhile is no SIGBUS. -1 with errno. */
static int copy_file(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), copy = -1, reason = 0;
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0)
        reason = errno;
    else if (!S_ISREG(status.st_mode))
        reason = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    else if (status.st_size > FILE_BYTES_MAX)
        reason = EFBIG;
    else if ((copy = memfd_create("asn-database", MFD_CLOEXEC)) < 0)
        reason = errno;
    for (off_t done = 0; !reason && done < status.st_size;) {
        ssize_t sent = sendfile(copy, file, NULL, (size_t)(status.st_size - done));
        if (sent <= 0)
            reason = sent < 0 ? errno : EIO; /* it was cut meanwhile */
        else
            done += sent;
    }
    if (file >= 0)
        close(file);
    if (reason && copy >= 0)
        close(copy);
    errno = reason;
    return reason ? -1 : copy;
}

/* The AS number of a network's entry; 0: it has none. */
static uint32_t number_of(struct walk *walk, MMDB_entry_s *entry) {
    static const char *const path[] = {"autonomous_system_number", NULL};
    MMDB_entry_data_s data;
    if (walk->any && entry->offset == walk->offset)
        return walk->number;
    int status = MMDB_aget_value(entry, &data, path);
    if (status != MMDB_SUCCESS && status != MMDB_LOOKUP_PATH_DOES_NOT_MATCH_DATA_ERROR)
        walk->damage = MMDB_strerror(status);
    if (status != MMDB_SUCCESS || !data.has_data)
        return 0;
    uint64_t number = data.type == MMDB_DATA_TYPE_UINT32   ? data.uint32
                      : data.type == MMDB_DATA_TYPE_UINT16 ? data.uint16
                      : data.type == MMDB_DATA_TYPE_UINT64 ? data.uint64
                                                           : UINT64_MAX;
    if (number > UINT32_MAX) {
        walk->damage = "an autonomous_system_number is no unsigned 32-bit integer";
        return 0;
    }
    walk->any = true;
    walk->offset = entry->offset;
    walk->number = (uint32_t)number;
    return walk->number;
}

static void visit_node(struct walk *walk, uint32_t node, uint8_t depth);

static void visit_record(struct walk *walk, uint8_t type, uint64_t record, MMDB_entry_s *entry, uint8_t depth) {
    uint8_t bits = walk->is_ipv6 ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS;
    if (type == MMDB_RECORD_TYPE_SEARCH_NODE) {
        bool is_ipv4 = walk->is_ipv6 && record == walk->database.ipv4_start_node.node_value;
        if (!is_ipv4) /* that and its aliases are walked as IPv4 */
            visit_node(walk, (uint32_t)record, depth);
    } else if (type == MMDB_RECORD_TYPE_DATA) {
        uint32_t number = number_of(walk, entry);
        if (number && !route_list_add(&walk->lists[walk->is_ipv6], walk->address, bits, depth, 0, number))
            walk->full = true;
    } else if (type != MMDB_RECORD_TYPE_EMPTY)
        walk->damage = "a node of its search tree points outside the file";
}

/* Recursion is bounded by the bits of an address. */
static void visit_node(struct walk *walk, uint32_t node, uint8_t depth) {
    MMDB_search_node_s records;
    uint8_t bits = walk->is_ipv6 ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS;
    if (walk->damage || walk->full)
        return;
    if (depth == bits || walk->visits++ > (uint64_t)walk->database.metadata.node_count * VISITS_PER_NODE ||
        MMDB_read_node(&walk->database, node, &records) != MMDB_SUCCESS) {
        walk->damage = "its search tree is not a tree";
        return;
    }
    uint8_t mask = (uint8_t)(0x80 >> depth % 8);
    visit_record(walk, records.left_record_type, records.left_record, &records.left_record_entry, depth + 1);
    walk->address[depth / 8] |= mask;
    visit_record(walk, records.right_record_type, records.right_record, &records.right_record_entry, depth + 1);
    walk->address[depth / 8] &= (uint8_t)~mask;
}

/* MMDB_read_node (1.7.1) believes a number of nodes that the file has no room for, when its size in bytes wraps at 2^32. */
static bool has_room_for_tree(const MMDB_s *database) {
    return (uint64_t)database->metadata.node_count * database->full_record_byte_size <= (uint64_t)database->file_size;
}

static void walk_tree(struct walk *walk) {
    const MMDB_s *database = &walk->database;
    if (!has_room_for_tree(database)) {
        walk->damage = "its metadata says more nodes than the file has room for";
        return;
    }
    bool has_ipv6 = database->metadata.ip_version == 6;
    bool has_ipv4_tree = database->ipv4_start_node.node_value < database->metadata.node_count;
    if (!has_ipv6 || (has_ipv4_tree && database->ipv4_start_node.netmask == 96))
        visit_node(walk, has_ipv6 ? database->ipv4_start_node.node_value : 0, 0);
    walk->is_ipv6 = true;
    if (has_ipv6)
        visit_node(walk, 0, 0);
}

static int build_tables(struct walk *walk, struct asn_tables *tables, struct capture_error_info *error) {
    struct asn_tables built = {0};
    for (int family = 0; family < 2 && !walk->full; family++) {
        built.tables[family] = route_table_build(&walk->lists[family], family ? ROUTE_IPV6_BITS : ROUTE_IPV4_BITS);
        walk->full = !built.tables[family];
    }
    if (walk->full) {
        asn_clear(&built);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "asn_database", "there is no memory for the AS database");
    }
    asn_clear(tables);
    *tables = built;
    return CAPTURE_OK;
}

static int load_copy(int copy, const char *path, struct asn_tables *tables, struct capture_error_info *error) {
    struct walk *walk = calloc(1, sizeof *walk);
    if (!walk)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "asn_database", "there is no memory for the AS database");
    char name[64];
    int code;
    snprintf(name, sizeof name, "/proc/self/fd/%d", copy);
    int status = MMDB_open(name, MMDB_MODE_MMAP, &walk->database);
    if (status == MMDB_SUCCESS) {
        walk_tree(walk);
        if (walk->damage)
            code = capture_fail(error, CAPTURE_ERR_FILE, "asn_database", "asn_database %s is damaged: %s", path, walk->damage);
        else if (!walk->any && !walk->full)
            code = capture_fail(error, CAPTURE_ERR_INVALID, "asn_database",
                                "asn_database %s is a %s and holds no autonomous_system_number: GeoLite2-ASN has it", path,
                                walk->database.metadata.database_type);
        else
            code = build_tables(walk, tables, error);
        MMDB_close(&walk->database);
    } else
        code = capture_fail(error, CAPTURE_ERR_FILE, "asn_database", "asn_database %s is no MaxMind DB or is damaged: %s", path,
                            MMDB_strerror(status));
    route_list_clear(&walk->lists[0]);
    route_list_clear(&walk->lists[1]);
    free(walk);
    return code;
}

int asn_load(const char *path, struct asn_tables *tables, struct capture_error_info *error) {
    int copy = copy_file(path);
    if (copy < 0)
        return capture_fail(error, CAPTURE_ERR_FILE, "asn_database", "asn_database %s cannot be read: %s", path, strerror(errno));
    int code = load_copy(copy, path, tables, error);
    close(copy);
    return code;
}

#endif
