/* SPDX-License-Identifier: Apache-2.0 */
/* Autonomous systems of addresses: a MaxMind DB file, read whole into tables of our own, so that a file that is later cut or
 * overwritten harms nobody, a damaged one is found when it is read, and a lookup costs what one of a route does. */
#ifndef JARVIS_ROUTE_ASN_H
#define JARVIS_ROUTE_ASN_H

#include "jarvis_capture.h"
#include "route/route_table.h"

/* Values of the tables are AS numbers. Zero-initialise. */
struct asn_tables {
    struct route_table *tables[2]; /* IPv4, IPv6 */
};

/* What tells a file from another at the same path. */
struct asn_file {
    uint64_t device, inode, size;
    int64_t modified_ns;
};

/* All 0 where there is no such file. */
struct asn_file asn_file_at(const char *path);

/* Reads the file. CAPTURE_ERR_FILE: it cannot be read, or is damaged; CAPTURE_ERR_INVALID: it holds no autonomous_system_number;
 * CAPTURE_ERR_BACKEND: this build has no libmaxminddb; CAPTURE_ERR_NO_MEMORY. On failure *tables is left alone. */
int asn_load(const char *path, struct asn_tables *tables, struct capture_error_info *error);
void asn_clear(struct asn_tables *tables);

#endif
