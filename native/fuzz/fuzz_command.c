/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as a command's authorization: as fuzz_lease. */
#include <stdlib.h>

#include "trust/lease.h"
#include "trust/names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char method[] = "/jarvis.capture.v1.AgentService/ListFlows";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct command command;
    struct capture_error_info error = {0};
    if (!command_parse((struct wire_bytes){data, size}, &command))
        return 0;
    if (!wire_is_message((struct wire_bytes){data, size}))
        abort();
    if (command_check(&command, (struct wire_bytes){(const uint8_t *)method, sizeof(method) - 1}, &error) != CAPTURE_OK) {
        if (strcmp(error.field, "COMMAND_INVALID") != 0)
            abort();
        return 0;
    }
    if (command.request_id.length != 36 || !command.lease_sequence || !command.expires_ns ||
        command.expires_ns > LEASE_DURATION_MAX_NS || !name_is_identity(command.principal) ||
        memcmp(command.principal.data, "spiffe://", 9) != 0)
        abort();
    return 0;
}
