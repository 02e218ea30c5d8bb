/* SPDX-License-Identifier: Apache-2.0 */
/* A subscriber's place in the record logs: reads whichever shard has something, in turn, and reports what was overwritten,
 * exactly. */
#include "engine/reader.h"

#include <stdlib.h>
#include <string.h>

#include "engine/capture.h"
#include "error.h"
#include "export/columns.h"
#include "export/flow_batch.h"
#include "export/text.h"

enum {
    READ_CHUNK = 64,         /* records copied out of the log at once */
    READ_LOOKED_MAX = 65536, /* records looked at in one call, matching or not */
    BATCH_CAPACITY_MIN = 4096,
};

struct capture_flow_reader {
    struct capture *capture;
    struct capture_flow_reader *next;
    struct flow_filter *filter;
    uint64_t min_packets;
    uint64_t since_ns;
    uint32_t turn;                    /* shard to look at first */
    struct lossless_reader *lossless; /* NULL: the log does not wait */
    uint64_t cursor[WORKERS_MAX];     /* next sequence to look at */
    uint64_t returned[WORKERS_MAX];   /* where the last returned batch of the shard ended */
    struct capture_flow chunk[READ_CHUNK];
    struct capture_flow_statistics chunk_statistics[READ_CHUNK]; /* where the capture keeps any */
};

static uint64_t load_token_position(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | at[i];
    return value;
}

static uint32_t make_token(const struct capture_flow_reader *reader, uint8_t *out) {
    uint32_t shards = reader->capture->worker_count;
    memcpy(out, reader->capture->epoch, 8);
    for (uint32_t shard = 0; shard < shards; shard++) {
        for (int i = 0; i < 8; i++)
            out[8 + 8 * shard + i] = (uint8_t)(reader->cursor[shard] >> (56 - 8 * i));
    }
    return 8 + 8 * shards;
}

static int start_at_token(struct capture_flow_reader *reader, const struct capture_reader_config *config,
                          struct capture_error_info *error) {
    const struct capture *capture = reader->capture;
    uint32_t length = 8 + 8 * capture->worker_count;
    if (!config->token || config->token_length != length)
        return capture_fail(error, CAPTURE_ERR_TOKEN, "token", "token has %u bytes: accepted is one of this capture, %u bytes",
                            config->token ? config->token_length : 0, length);
    if (memcmp(config->token, capture->epoch, 8) != 0)
        return capture_fail(error, CAPTURE_ERR_TOKEN, "token",
                            "token is of another capture: accepted is one that this capture gave out");
    for (uint32_t shard = 0; shard < capture->worker_count; shard++) {
        reader->cursor[shard] = load_token_position(config->token + 8 + 8 * shard);
        if (reader->cursor[shard] > record_log_head(&capture->workers[shard].log))
            return capture_fail(error, CAPTURE_ERR_TOKEN, "token",
                                "token stands at record %llu of shard %u: accepted is one that this capture gave out",
                                (unsigned long long)reader->cursor[shard], shard);
    }
    return CAPTURE_OK;
}

/* The last_records newest of all shards: an equal share of each. */
static void start_at_last(struct capture_flow_reader *reader, uint32_t last_records) {
    uint32_t shards = reader->capture->worker_count;
    for (uint32_t shard = 0; shard < shards; shard++) {
        const struct record_log *log = &reader->capture->workers[shard].log;
        uint64_t share = last_records / shards + (shard < last_records % shards);
        uint64_t head = record_log_head(log), oldest = record_log_oldest(log);
        reader->cursor[shard] = head - oldest > share ? head - share : oldest;
    }
}

static int set_start(struct capture_flow_reader *reader, const struct capture_reader_config *config,
                     struct capture_error_info *error) {
    if (config->start == CAPTURE_READER_TOKEN)
        return start_at_token(reader, config, error);
    if (config->start == CAPTURE_READER_LAST || config->start == CAPTURE_READER_NEWEST) {
        start_at_last(reader, config->start == CAPTURE_READER_LAST ? config->last_records : 0);
        return CAPTURE_OK;
    }
    if (config->start != CAPTURE_READER_OLDEST)
        return capture_fail(error, CAPTURE_ERR_INVALID, "start",
                            "start is %u: accepted are 0 (oldest), 1 (newest), 2 (last) and 3 (token)", config->start);
    for (uint32_t shard = 0; shard < reader->capture->worker_count; shard++)
        reader->cursor[shard] = record_log_oldest(&reader->capture->workers[shard].log);
    return CAPTURE_OK;
}

/* Lets the workers know where the reader stands; from the next turn on they wait for it. Caller holds the readers mutex. */
static void publish_cursors(struct capture_flow_reader *reader) {
    for (uint32_t shard = 0; shard < reader->capture->worker_count; shard++)
        counter_set(&reader->lossless->cursor[shard], reader->cursor[shard]);
}

/* Takes a place among the lossless readers, at the oldest records there are. A turn that is running does not know of it and may
 * overwrite some yet; once it is over, nothing moves before the reader has. */
static int register_lossless(struct capture_flow_reader *reader, struct capture_error_info *error) {
    struct capture *capture = reader->capture;
    if (capture->live)
        return capture_fail(error, CAPTURE_ERR_INVALID, "lossless",
                            "lossless is set: accepted for captures from files only, a live capture cannot wait");
    for (int i = 0; i < LOSSLESS_READERS_MAX; i++) {
        struct lossless_reader *slot = &capture->lossless[i];
        if (atomic_load(&slot->active))
            continue;
        reader->lossless = slot;
        for (uint32_t shard = 0; shard < capture->worker_count; shard++)
            reader->cursor[shard] = record_log_oldest(&capture->workers[shard].log);
        publish_cursors(reader);
        atomic_store(&slot->active, true);
        atomic_fetch_add(&capture->lossless_count, 1);
        for (uint32_t shard = 0; shard < capture->worker_count; shard++)
            worker_await_turn(&capture->workers[shard]);
        return CAPTURE_OK;
    }
    return capture_fail(error, CAPTURE_ERR_STATE, "lossless", "%d lossless readers are open already, the most there can be",
                        LOSSLESS_READERS_MAX);
}

static void unregister_lossless(struct capture_flow_reader *reader) {
    if (!reader->lossless)
        return;
    atomic_store(&reader->lossless->active, false);
    atomic_fetch_sub(&reader->capture->lossless_count, 1);
    reader->lossless = NULL;
}

int capture_reader_open(capture_t *capture, const struct capture_reader_config *config, capture_flow_reader_t **out,
                        struct capture_error_info *error) {
    *out = NULL;
    if (config->struct_size != sizeof(*config))
        return capture_fail(error, CAPTURE_ERR_INVALID, "struct_size",
                            "struct_size is %u: accepted is %zu, the size this library was built with", config->struct_size,
                            sizeof(*config));
    if (!capture->metering)
        return capture_fail(error, CAPTURE_ERR_STATE, "", "flow metering is not enabled: there are no records to read");
    struct capture_flow_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "", "%zu bytes for a reader could not be allocated", sizeof(*reader));
    reader->capture = capture;
    reader->min_packets = config->min_packets;
    reader->since_ns = config->since_ns;
    int result = flow_filter_compile(config->filter, &reader->filter, error);
    pthread_mutex_lock(&capture->readers_mutex);
    if (result == CAPTURE_OK && config->lossless)
        result = register_lossless(reader, error);
    if (result == CAPTURE_OK)
        result = set_start(reader, config, error);
    if (result != CAPTURE_OK)
        unregister_lossless(reader);
    if (result == CAPTURE_OK) {
        if (reader->lossless)
            publish_cursors(reader);
        memcpy(reader->returned, reader->cursor, sizeof(reader->returned));
        reader->next = capture->readers;
        capture->readers = reader;
    }
    pthread_mutex_unlock(&capture->readers_mutex);
    if (result != CAPTURE_OK) {
        flow_filter_free(reader->filter);
        free(reader);
        return result;
    }
    *out = reader;
    return CAPTURE_OK;
}

void capture_reader_close(capture_flow_reader_t *reader) {
    if (!reader)
        return;
    struct capture *capture = reader->capture;
    pthread_mutex_lock(&capture->readers_mutex);
    for (struct capture_flow_reader **link = &capture->readers; *link; link = &(*link)->next) {
        if (*link == reader) {
            *link = reader->next;
            break;
        }
    }
    unregister_lossless(reader);
    pthread_mutex_unlock(&capture->readers_mutex);
    flow_filter_free(reader->filter);
    free(reader);
}

static bool reader_wants(const struct capture_flow_reader *reader, const struct capture_flow *flow) {
    return flow->fwd_packets + flow->rev_packets >= reader->min_packets && flow->end_time_ns >= reader->since_ns &&
           (!reader->filter || flow_filter_match(reader->filter, flow));
}

static void note_loss(struct capture_flow_reader *reader, uint32_t shard, uint64_t lost, struct capture_batch_info *info) {
    uint64_t at = reader->cursor[shard];
    if (!info->lost)
        info->first_lost_sequence = at;
    info->lost += lost;
    info->last_lost_sequence = at + lost - 1;
    reader->cursor[shard] = at + lost;
    reader->returned[shard] = at + lost;
}

/* Moves the shard's cursor over records until `max_records` went to the sink, the sink is full, or none are ready.
 * A gap found once records were looked at waits for the next call. False: nothing was ready. */
static bool read_shard(struct capture_flow_reader *reader, uint32_t shard, uint32_t max_records, record_sink sink, void *context,
                       struct capture_batch_info *info) {
    const struct record_log *log = &reader->capture->workers[shard].log;
    bool statistics = record_log_has_statistics(log);
    uint32_t looked = 0;
    bool room = true;
    while (room && info->records < max_records && looked < READ_LOOKED_MAX) {
        uint64_t lost;
        uint32_t count = record_log_read(log, reader->cursor[shard], reader->chunk, reader->chunk_statistics, READ_CHUNK, &lost);
        if (lost && looked)
            break;
        if (lost) {
            note_loss(reader, shard, lost, info);
            continue;
        }
        uint32_t taken = 0;
        for (; taken < count && info->records < max_records; taken++) {
            if (!reader_wants(reader, &reader->chunk[taken]))
                continue;
            room = sink(context, &reader->chunk[taken], statistics ? &reader->chunk_statistics[taken] : NULL);
            if (!room)
                break;
            info->records++;
        }
        looked += taken;
        reader->cursor[shard] += taken;
        if (count < READ_CHUNK)
            break;
    }
    return looked || info->lost;
}

static void note_readiness(const struct capture_flow_reader *reader, struct capture_batch_info *info) {
    struct capture *capture = reader->capture;
    bool finished = atomic_load(&capture->finished); /* before the heads: what is written after is not missed */
    for (uint32_t shard = 0; shard < capture->worker_count; shard++)
        info->more = info->more || reader->cursor[shard] != record_log_head(&capture->workers[shard].log);
    info->end = finished && !info->more;
}

/* Reads from the first shard, in turn, that has anything, and fills the info but for `bytes`. */
static void read_records(struct capture_flow_reader *reader, uint32_t max_records, record_sink sink, void *context,
                         struct capture_batch_info *info) {
    uint32_t shards = reader->capture->worker_count;
    memset(info, 0, sizeof(*info));
    capture_flush_released(reader->capture);
    for (uint32_t tried = 0; tried < shards; tried++) {
        uint32_t shard = (reader->turn + tried) % shards;
        info->shard = shard;
        bool moved = read_shard(reader, shard, max_records, sink, context, info);
        info->first_sequence = reader->returned[shard];
        info->next_sequence = reader->cursor[shard];
        if (!moved)
            continue;
        if (info->records)
            reader->returned[shard] = reader->cursor[shard];
        if (reader->lossless)
            counter_set(&reader->lossless->cursor[shard], reader->cursor[shard]);
        reader->turn = shard + 1;
        break;
    }
    note_readiness(reader, info);
}

int reader_read(struct capture_flow_reader *reader, record_sink sink, void *context, struct capture_batch_info *info) {
    if (!capture_may_give(reader->capture))
        return CAPTURE_ERR_LEASE;
    read_records(reader, UINT32_MAX, sink, context, info);
    return CAPTURE_OK;
}

struct batch_sink {
    uint8_t *at;
    uint8_t *end;
    uint64_t base_time_ns; /* of the first record, which may well be 0 */
    bool begun;
};

static bool sink_batch(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    struct batch_sink *sink = context;
    if (sink->end - sink->at < (statistics ? FLOW_BATCH_STATISTICS_MAX : FLOW_BATCH_RECORD_MAX))
        return false;
    if (!sink->begun)
        sink->base_time_ns = flow->start_time_ns;
    sink->begun = true;
    sink->at = flow_batch_record(sink->at, flow, statistics, sink->base_time_ns);
    return true;
}

int capture_reader_read_batch(capture_flow_reader_t *reader, uint8_t *out, uint64_t capacity, uint32_t max_records,
                              struct capture_batch_info *info) {
    if (capacity < BATCH_CAPACITY_MIN)
        return CAPTURE_ERR_SPACE;
    if (!capture_may_give(reader->capture))
        return CAPTURE_ERR_LEASE;
    /* Records first, behind room for the longest head; what precedes them is known only then. */
    struct batch_sink sink = {.at = out + FLOW_BATCH_HEAD_MAX, .end = out + capacity};
    read_records(reader, max_records, sink_batch, &sink, info);
    if (!info->records)
        return 0;
    uint8_t token[FLOW_BATCH_TOKEN_MAX], fields[FLOW_BATCH_HEAD_MAX];
    struct flow_batch_head head = {
        .shard = info->shard,
        .first_sequence = info->first_sequence,
        .next_sequence = info->next_sequence,
        .base_time_ns = sink.base_time_ns,
        .token = token,
        .token_length = make_token(reader, token),
    };
    size_t fields_length = (size_t)(flow_batch_head(fields, &head) - fields);
    size_t records_length = (size_t)(sink.at - (out + FLOW_BATCH_HEAD_MAX));
    uint8_t *at = flow_batch_response(out, fields_length + records_length);
    memmove(at + fields_length, out + FLOW_BATCH_HEAD_MAX, records_length);
    memcpy(at, fields, fields_length);
    info->bytes = (uint64_t)(at - out) + fields_length + records_length;
    return (int)info->records;
}

struct text_sink {
    char *at;
    char *end;
    char *(*line)(char *out, const struct text_record *record);
    uint32_t kinds; /* of statistics */
};

static bool sink_text(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    struct text_sink *sink = context;
    struct text_record record = {.flow = flow, .statistics = statistics, .kinds = sink->kinds};
    if (sink->end - sink->at < (statistics ? TEXT_STATISTICS_MAX : TEXT_RECORD_MAX))
        return false;
    sink->at = sink->line(sink->at, &record);
    return true;
}

int capture_reader_read_text(capture_flow_reader_t *reader, uint32_t format, char *out, uint64_t capacity,
                             struct capture_batch_info *info) {
    struct text_sink sink = {.at = out, .end = out + capacity, .kinds = reader->capture->flow_config.statistics};
    if (format != CAPTURE_TEXT_JSON && format != CAPTURE_TEXT_CSV)
        return CAPTURE_ERR_INVALID;
    if (capacity < (sink.kinds ? TEXT_STATISTICS_MAX : TEXT_RECORD_MAX))
        return CAPTURE_ERR_SPACE;
    if (!capture_may_give(reader->capture))
        return CAPTURE_ERR_LEASE;
    sink.line = format == CAPTURE_TEXT_JSON ? text_json_line : text_csv_line;
    read_records(reader, UINT32_MAX, sink_text, &sink, info);
    info->bytes = (uint64_t)(sink.at - out);
    return (int)info->records;
}

struct column_sink {
    const struct capture_flow_columns *columns;
    uint32_t row;
};

static bool sink_columns(void *context, const struct capture_flow *flow, const struct capture_flow_statistics *statistics) {
    struct column_sink *sink = context;
    columns_put(sink->columns, sink->row++, flow, statistics);
    return true;
}

int capture_reader_read_columns(capture_flow_reader_t *reader, const struct capture_flow_columns *columns, uint32_t max_records,
                                struct capture_batch_info *info) {
    struct column_sink sink = {.columns = columns};
    if (!capture_may_give(reader->capture))
        return CAPTURE_ERR_LEASE;
    read_records(reader, max_records, sink_columns, &sink, info);
    return (int)info->records;
}
