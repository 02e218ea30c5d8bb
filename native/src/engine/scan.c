/* SPDX-License-Identifier: Apache-2.0 */
/* Queries of the live table: any thread posts a scan to a worker, whose owner serves it in slices between batches; where nobody
 * owns the worker (inline between polls, after the stop) the asking thread serves it itself. */
#include <errno.h>
#include <string.h>

#include "engine/capture.h"
#include "error.h"

enum { SCAN_TIMEOUT_MS = 5000, SCAN_RETRY_MS = 2, QUERY_LIMIT_MAX = 100000 };

static void serve_slice(struct worker *worker) {
    struct flow_scan *scan = &worker->scan;
    uint32_t end = worker->table.high_water;
    uint32_t stop = end - scan->at > QUERY_SLICE ? scan->at + QUERY_SLICE : end;
    bool more = true;
    for (; scan->at < stop && more; scan->at++) {
        const struct flow_record *record = &worker->table.records[scan->at];
        if (!record->key.ip_version || record->state == FLOW_STATE_REMAINDER)
            continue;
        struct capture_flow flow;
        flow_table_export(&worker->table, record, CAPTURE_FLOW_END_NONE, &flow);
        more = scan->visit(scan->context, &flow, &worker->table, scan->at);
    }
    if (more && scan->at < end)
        return;
    scan->visit = NULL;
    atomic_store(&scan->posted, false);
    pthread_cond_signal(&scan->done);
}

void worker_serve_scan(struct worker *worker) {
    struct flow_scan *scan = &worker->scan;
    if (!atomic_load_explicit(&scan->posted, memory_order_relaxed) || pthread_mutex_trylock(&scan->lock) != 0)
        return;
    if (scan->visit)
        serve_slice(worker);
    pthread_mutex_unlock(&scan->lock);
}

static void post_scan(struct flow_scan *scan, scan_visit *visit, void *context) {
    pthread_mutex_lock(&scan->lock);
    scan->visit = visit;
    scan->context = context;
    scan->at = 0;
    atomic_store(&scan->posted, true);
    pthread_mutex_unlock(&scan->lock);
}

/* Waits a moment; true when the scan is complete. */
static bool wait_scan(struct flow_scan *scan) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += SCAN_RETRY_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&scan->lock);
    if (scan->visit)
        pthread_cond_timedwait(&scan->done, &scan->lock, &until);
    bool complete = !scan->visit;
    pthread_mutex_unlock(&scan->lock);
    return complete;
}

static int scan_worker(struct worker *worker, scan_visit *visit, void *context) {
    struct flow_scan *scan = &worker->scan;
    uint64_t give_up = clock_ns(CLOCK_MONOTONIC) + SCAN_TIMEOUT_MS * 1000000ull;
    post_scan(scan, visit, context);
    do {
        if (pthread_mutex_trylock(&worker->owner) == 0) {
            while (atomic_load(&scan->posted))
                worker_serve_scan(worker);
            pthread_mutex_unlock(&worker->owner);
        }
        if (wait_scan(scan))
            return CAPTURE_OK;
    } while (clock_ns(CLOCK_MONOTONIC) < give_up);
    pthread_mutex_lock(&scan->lock);
    bool complete = !scan->visit;
    scan->visit = NULL;
    atomic_store(&scan->posted, false);
    pthread_mutex_unlock(&scan->lock);
    return complete ? CAPTURE_OK : CAPTURE_ERR_TIMEOUT;
}

static int scan_capture(struct capture *capture, scan_visit *visit, void *context) {
    int result = CAPTURE_OK;
    pthread_mutex_lock(&capture->scan_mutex);
    for (uint32_t i = 0; i < capture->worker_count && result == CAPTURE_OK; i++)
        result = scan_worker(&capture->workers[i], visit, context);
    pthread_mutex_unlock(&capture->scan_mutex);
    return result;
}

/* The best `limit` flows so far: a heap with the worst of them on top. */
struct top_flows {
    const struct capture_flow_query *query;
    struct flow_filter *filter;
    struct capture_flow *flows;
    struct capture_flow_statistics *statistics; /* of flows[i] at statistics[i]; NULL: not wanted */
    uint32_t count;
};

static uint64_t sort_value(const struct capture_flow *flow, uint32_t sort_by) {
    switch (sort_by) {
    case CAPTURE_SORT_PACKETS:
        return flow->fwd_packets + flow->rev_packets;
    case CAPTURE_SORT_OCTETS:
        return flow->fwd_octets + flow->rev_octets;
    case CAPTURE_SORT_START:
        return flow->start_time_ns;
    case CAPTURE_SORT_LAST:
        return flow->end_time_ns;
    case CAPTURE_SORT_DURATION:
        return flow->end_time_ns - flow->start_time_ns;
    default:
        return 0;
    }
}

static void copy_statistics(const struct flow_table *table, uint32_t number, struct capture_flow_statistics *out) {
    flow_statistics_export(&table->statistics, number, &table->records[number], out);
}

static void move_entry(const struct top_flows *top, uint32_t to, uint32_t from) {
    top->flows[to] = top->flows[from];
    if (top->statistics)
        top->statistics[to] = top->statistics[from];
}

static void sift_down(const struct top_flows *top, uint32_t count, uint32_t at) {
    struct capture_flow *flows = top->flows, moving = flows[at];
    struct capture_flow_statistics moving_statistics =
        top->statistics ? top->statistics[at] : (struct capture_flow_statistics){0};
    uint32_t sort_by = top->query->sort_by;
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && sort_value(&flows[child + 1], sort_by) < sort_value(&flows[child], sort_by))
            child++;
        if (sort_value(&flows[child], sort_by) >= sort_value(&moving, sort_by))
            break;
        move_entry(top, at, child);
    }
    flows[at] = moving;
    if (top->statistics)
        top->statistics[at] = moving_statistics;
}

static void make_heap(const struct top_flows *top) {
    for (uint32_t i = top->count / 2; i-- > 0;)
        sift_down(top, top->count, i);
}

static void put_entry(const struct top_flows *top, uint32_t at, const struct capture_flow *flow, const struct flow_table *table,
                      uint32_t number) {
    top->flows[at] = *flow;
    if (top->statistics)
        copy_statistics(table, number, &top->statistics[at]);
}

static bool top_visit(void *context, const struct capture_flow *flow, const struct flow_table *table, uint32_t number) {
    struct top_flows *top = context;
    uint32_t limit = top->query->limit, sort_by = top->query->sort_by;
    if (flow->fwd_packets + flow->rev_packets < top->query->min_packets)
        return true;
    if (top->filter && !flow_filter_match(top->filter, flow))
        return true;
    if (top->count < limit) {
        put_entry(top, top->count++, flow, table, number);
        if (top->count == limit)
            make_heap(top);
        return sort_by != CAPTURE_SORT_NONE || top->count < limit;
    }
    if (sort_by == CAPTURE_SORT_NONE)
        return false;
    if (sort_value(flow, sort_by) > sort_value(&top->flows[0], sort_by)) {
        put_entry(top, 0, flow, table, number);
        sift_down(top, limit, 0);
    }
    return true;
}

/* Heapsort: the least goes to the end, again and again. */
static void sort_descending(const struct top_flows *top) {
    make_heap(top);
    for (uint32_t last = top->count; last-- > 1;) {
        struct capture_flow least = top->flows[0];
        struct capture_flow_statistics statistics = top->statistics ? top->statistics[0] : (struct capture_flow_statistics){0};
        move_entry(top, 0, last);
        top->flows[last] = least;
        if (top->statistics)
            top->statistics[last] = statistics;
        sift_down(top, last, 0);
    }
}

static int query_check(const struct capture *capture, const struct capture_flow_query *query, struct capture_error_info *error) {
    if (!capture_may_give(capture))
        return capture_fail(error, CAPTURE_ERR_LEASE, "LEASE_EXPIRED", "no lease is in force: no flow is given out");
    if (!capture->metering)
        return capture_fail(error, CAPTURE_ERR_STATE, "",
                            "flow metering is not enabled: call capture_flow_enable before capture_start");
    if (query->limit < 1 || query->limit > QUERY_LIMIT_MAX)
        return capture_fail(error, CAPTURE_ERR_INVALID, "limit", "limit is %u: accepted are 1 to %d", query->limit,
                            QUERY_LIMIT_MAX);
    if (query->sort_by > CAPTURE_SORT_DURATION)
        return capture_fail(error, CAPTURE_ERR_INVALID, "sort_by",
                            "sort_by is %u: accepted are 0 (none), 1 (packets), 2 (octets), "
                            "3 (start), 4 (last) and 5 (duration)",
                            query->sort_by);
    return CAPTURE_OK;
}

int capture_flow_get_all(capture_t *capture, const struct capture_flow_query *query, struct capture_flow *out,
                         struct capture_flow_statistics *statistics, struct capture_error_info *error) {
    struct top_flows top = {.query = query, .flows = out, .statistics = statistics};
    int result = query_check(capture, query, error);
    if (result == CAPTURE_OK)
        result = flow_filter_compile(query->filter, &top.filter, error);
    if (result != CAPTURE_OK)
        return result;
    result = scan_capture(capture, top_visit, &top);
    flow_filter_free(top.filter);
    if (result != CAPTURE_OK)
        return capture_fail(error, result, "", "a capture worker did not answer within %d s", SCAN_TIMEOUT_MS / 1000);
    if (query->sort_by != CAPTURE_SORT_NONE)
        sort_descending(&top);
    return (int)top.count;
}

struct flow_lookup {
    uint64_t flow_id;
    struct capture_flow *out;
    struct capture_flow_statistics *statistics;
    uint32_t capacity;
    uint32_t count;
};

static bool lookup_visit(void *context, const struct capture_flow *flow, const struct flow_table *table, uint32_t number) {
    struct flow_lookup *lookup = context;
    if (flow->flow_id != lookup->flow_id || lookup->count == lookup->capacity)
        return lookup->count < lookup->capacity;
    lookup->out[lookup->count] = *flow;
    if (lookup->statistics)
        copy_statistics(table, number, &lookup->statistics[lookup->count]);
    return ++lookup->count < lookup->capacity;
}

int capture_flow_lookup(capture_t *capture, uint64_t flow_id, struct capture_flow *out,
                        struct capture_flow_statistics *statistics, uint32_t capacity) {
    struct flow_lookup lookup = {.flow_id = flow_id, .out = out, .statistics = statistics, .capacity = capacity};
    if (!capture->metering)
        return CAPTURE_ERR_STATE;
    if (!capture_may_give(capture))
        return CAPTURE_ERR_LEASE;
    if (capacity == 0)
        return CAPTURE_ERR_INVALID;
    int result = scan_capture(capture, lookup_visit, &lookup);
    if (result != CAPTURE_OK)
        return result;
    return lookup.count ? (int)lookup.count : CAPTURE_ERR_NOT_FOUND;
}
