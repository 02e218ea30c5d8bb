/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as a lease: what is taken out of them lies inside them, and what passes the form check is in its ranges. */
#include <stdlib.h>

#include "trust/lease.h"
#include "trust/names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_inside(struct wire_bytes field, const uint8_t *data, size_t size) {
    if (field.length && (field.data < data || field.length > (size_t)(data + size - field.data)))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct lease lease;
    struct capture_error_info error = {0};
    if (!lease_parse((struct wire_bytes){data, size}, &lease))
        return 0;
    if (!wire_is_message((struct wire_bytes){data, size}) || lease.method_count > LEASE_METHODS_MAX)
        abort();
    for (uint32_t i = 0; i < lease.method_count; i++)
        check_inside(lease.methods[i], data, size);
    check_inside(lease.agent_id, data, size);
    check_inside(lease.nonce, data, size);
    if (lease_check(&lease, &error) != CAPTURE_OK) {
        if (strcmp(error.field, "LEASE_INVALID") != 0)
            abort();
        return 0;
    }
    if (!lease.sequence || !lease.duration_ns || lease.duration_ns > LEASE_DURATION_MAX_NS || !lease.method_count ||
        lease.nonce.length != NONCE_BYTES || !name_is_agent_id(lease.agent_id) || !lease_allows(&lease, lease.methods[0]))
        abort();
    return 0;
}
