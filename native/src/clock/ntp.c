/* SPDX-License-Identifier: Apache-2.0 */
#include "clock/ntp.h"

bool ntp_read(const struct clock_system *system, struct ntp_reading *out) {
    struct timex timex = {.modes = 0};
    int state = system->adjtimex(&timex);
    if (state < 0)
        return false;
    *out = (struct ntp_reading){
        .synchronised = state != TIME_ERROR && !(timex.status & STA_UNSYNC),
        .offset_ns = (int64_t)timex.offset * (timex.status & STA_NANO ? 1 : 1000),
        .error_bound_ns = (uint64_t)timex.maxerror * 1000,
        .tai_offset_ns = (int64_t)timex.tai * 1000000000,
    };
    return true;
}
