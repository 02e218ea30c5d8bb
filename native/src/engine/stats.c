/* SPDX-License-Identifier: Apache-2.0 */
/* One snapshot out of the workers' counters and the backends'. */
#include <string.h>

#include "engine/capture.h"

static void add_worker(const struct worker *worker, struct capture_stats *out) {
    const struct worker_counters *counters = &worker->counters;
    uint64_t metered = counter_get(&counters->metered), filtered = counter_get(&counters->filtered);
    uint64_t unsampled = counter_get(&counters->unsampled);
    uint64_t non_ip = counter_get(&counters->non_ip), malformed = counter_get(&counters->malformed);
    uint64_t paused = counter_get(&counters->paused), dropped = counter_get(&counters->dropped_user);
    uint64_t done = metered + filtered + unsampled + non_ip + malformed + paused + dropped;
    uint64_t read = counter_get(&counters->read); /* after the others: never less than their sum */
    out->metered += metered;
    out->filtered += filtered;
    out->unsampled += unsampled;
    out->non_ip += non_ip;
    out->malformed += malformed;
    out->paused += paused;
    out->dropped_user += dropped;
    out->in_flight += read > done ? read - done : 0;
    out->received_octets += counter_get(&counters->read_octets);
    out->metered_octets += counter_get(&counters->metered_octets);
    out->tunnelled += counter_get(&counters->tunnelled);
    out->tunnelled_octets += counter_get(&counters->tunnelled_octets);
    out->truncated += counter_get(&counters->truncated);
    out->fragments_matched += counter_get(&counters->fragments_matched);
    out->fragments_unmatched += counter_get(&counters->fragments_unmatched);
    out->time_regressions += counter_get(&counters->time_regressions);
    out->packet_ring_dropped += counter_get(&counters->packet_ring_dropped);
    uint64_t ended = 0;
    for (int reason = 1; reason < 6; reason++) {
        uint64_t count = counter_get(&counters->flows_ended[reason]);
        out->flows_ended[reason] += count;
        ended += count;
    }
    uint64_t total = counter_get(&counters->flows_total); /* after the others, as above */
    out->flows_total += total;
    out->flows_active += total - ended;
}

static void add_ring(const struct worker *worker, struct capture_stats *out) {
    double usage = worker->ring ? packet_ring_usage(worker->ring) : 0;
    if (usage > out->ring_usage)
        out->ring_usage = usage;
}

/* The rate of the last full second; in the first one the mean since the start; after the stop none. */
static void add_rates(const struct worker *worker, uint64_t elapsed_ns, struct capture_stats *out) {
    const struct worker_counters *counters = &worker->counters;
    if (counter_get(&worker->capture->stop_mono_ns) || !elapsed_ns)
        return;
    if (counter_get(&counters->rates_known)) {
        out->throughput_pps += (double)counter_get(&counters->rate_pps);
        out->throughput_bps += (double)counter_get(&counters->rate_bps);
        return;
    }
    double seconds = (double)elapsed_ns / 1e9;
    out->throughput_pps += (double)counter_get(&counters->read) / seconds;
    out->throughput_bps += (double)counter_get(&counters->read_octets) * 8 / seconds;
}

static uint64_t elapsed(const struct capture *capture) {
    uint64_t start = counter_get(&capture->start_mono_ns), stop = counter_get(&capture->stop_mono_ns);
    if (!start)
        return 0;
    return (stop ? stop : clock_ns(CLOCK_MONOTONIC)) - start;
}

int capture_get_stats(capture_t *capture, struct capture_stats *out) {
    memset(out, 0, sizeof(*out));
    out->time_unix_ns = clock_ns(CLOCK_REALTIME);
    out->elapsed_ns = elapsed(capture);
    out->clock_steps = atomic_load(&capture->monitor.clock.steps);
    pthread_mutex_lock(&capture->stats_mutex);
    for (uint32_t i = 0; out->elapsed_ns && i < capture->worker_count; i++) {
        const struct worker *worker = &capture->workers[i];
        add_worker(worker, out);
        add_ring(worker, out);
        add_rates(worker, out->elapsed_ns, out);
    }
    if (out->elapsed_ns)
        sources_add_stats(capture, out);
    for (uint32_t i = 0; capture->metering && i < capture->worker_count; i++) {
        const struct worker *worker = &capture->workers[i];
        out->log_records_written += record_log_head(&worker->log);
        out->statistics_bytes += flow_statistics_size(worker->table.config.statistics, worker->table.config.max_flows);
        out->flow_table_bytes += flow_table_bytes(&worker->table) + record_log_bytes(&worker->log) +
                                 fragment_cache_bytes(&worker->fragments) + mirror_clock_bytes(&worker->mirrors);
    }
    out->received = out->metered + out->filtered + out->unsampled + out->non_ip + out->malformed + out->paused +
                    out->dropped_nic + out->dropped_kernel + out->dropped_user + out->in_flight;
    /* A frame on its way from the kernel's ring to a worker may be in neither count for a moment: it is in flight. */
    if (out->received < capture->received_said && !counter_get(&capture->stop_mono_ns)) {
        out->in_flight += capture->received_said - out->received;
        out->received = capture->received_said;
    }
    capture->received_said = out->received;
    pthread_mutex_unlock(&capture->stats_mutex);
    return CAPTURE_OK;
}
