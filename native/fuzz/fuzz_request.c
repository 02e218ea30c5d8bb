/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as a StartCapture or UpdateInterfaces request: a request for one interface and filter is for no other, and none
 * names more interfaces than it has bytes for. */
#include <stdlib.h>

#include "trust/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct wire_bytes request = {data, size};
    const struct capture_config one = {.interface = "eth0", .filter = "udp"}, other = {.interface = "eth1", .filter = "udp"};
    const struct capture_config open = {.interface = "eth0"}, file = {.file_count = 1};
    const struct capture_config *configs[] = {&one, &other, &open, &file};
    int accepted = 0;
    for (int i = 0; i < 4; i++)
        accepted += request_check_start(request, configs[i], NULL) == CAPTURE_OK;
    if (accepted > 1)
        abort();
    int found = request_find_added(request, "eth0");
    if (found >= 0 && (size_t)found * 2 >= size)
        abort();
    return 0;
}
