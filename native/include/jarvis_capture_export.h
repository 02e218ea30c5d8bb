/* SPDX-License-Identifier: Apache-2.0 */
/* Part of jarvis_capture.h, which includes it and whose conventions it follows: export, sampled frames, routes. */
#ifndef JARVIS_CAPTURE_EXPORT_H
#define JARVIS_CAPTURE_EXPORT_H

/* Export: finished records (and sampled frames) as messages that collectors understand. Nothing here sends or waits, but for
 * capture_export_send, which a program calls with a socket of its own.
 *
 *   reader --capture_exporter_read--> block of messages --(spool)--> capture_export_stamp (sequence, export time) --> socket or file
 *
 * A block is bytes and an array of struct capture_export_message, which says where each message lies in them. Messages are made
 * without sequence number and export time, so that they may wait: those are given when a message leaves, by each session with a
 * collector. Templates are never in a block of records: capture_exporter_templates gives them, to be sent before the first record
 * of a session, and again as the transport demands. A template's id follows from its content alone, so it is the same in every
 * process and release, and another content has another id.
 *
 * One thread at a time may use an exporter; different exporters are independent. */
enum capture_export_protocol {
    CAPTURE_EXPORT_NETFLOW_V5 = 1, /* IPv4 only; a record a direction; counters beyond 32 bits are split over records */
    CAPTURE_EXPORT_NETFLOW_V9 = 2, /* RFC 3954; a record a direction */
    CAPTURE_EXPORT_IPFIX = 3,      /* RFC 7011 */
    CAPTURE_EXPORT_SFLOW_V5 = 4    /* sFlow version 5 (sflow.org), flow samples and counters samples */
};

/* Which information elements records have; docs/export.md lists them. NetFlow v5 and sFlow have one form only. */
enum capture_export_profile {
    CAPTURE_EXPORT_MINIMAL = 1,  /* key, counters, times */
    CAPTURE_EXPORT_DEFAULT = 2,  /* and flags, interfaces, VLAN, DSCP, ICMP, end reason, flow id, ... */
    CAPTURE_EXPORT_FULL = 3      /* and whatever else the capture keeps and `routes` knows */
};

enum capture_export_time {
    CAPTURE_EXPORT_MILLISECONDS = 1, /* IE 152, 153 */
    CAPTURE_EXPORT_MICROSECONDS = 2, /* IE 154, 155 */
    CAPTURE_EXPORT_NANOSECONDS = 3   /* IE 156, 157 */
};

enum { CAPTURE_EXPORT_MESSAGE_MIN = 512, CAPTURE_EXPORT_MESSAGE_MAX = 65535, CAPTURE_EXPORT_MESSAGE_DEFAULT = 1400 };

/* Zero-initialise, set struct_size, fill in. */
struct capture_export_config {
    uint32_t struct_size;        /* sizeof(struct capture_export_config) */
    uint32_t protocol;           /* enum capture_export_protocol */
    uint32_t profile;            /* enum capture_export_profile; 0 = default */
    uint32_t time_unit;          /* enum capture_export_time, v9 and IPFIX; 0 = milliseconds */
    bool biflow;                 /* IPFIX: one record a flow with reverse elements (RFC 5103), else a record a direction */
    uint32_t observation_domain_id; /* IPFIX; v9: source id; v5: engine type and id, its low 16 bits; sFlow: sub-agent id */
    uint32_t message_max;        /* bytes a message, _MESSAGE_MIN.._MAX; 0 = _MESSAGE_DEFAULT */
    uint32_t statistics;         /* enum capture_statistics, or'ed: what the records come with; profile full exports them */
    uint32_t sampling;           /* enum capture_sampling of the capture, for options and v5's header */
    uint32_t sampling_interval;  /* N of 1 in N; sFlow: of the sampler */
    bool merge_interfaces;       /* as the capture's: else ingressInterface is one of the flow keys that options tell (IE 173) */
    uint64_t system_init_ns;     /* Unix time that sysUptime counts from (v5, v9, sFlow; IE 160) */
    uint32_t share;              /* takes the flows whose flow_id modulo share_count is this: balanced over collectors */
    uint32_t share_count;        /* 0 or 1: all flows */
    capture_routes_t *routes;    /* for profile full, or NULL; kept alive by the exporter */
    uint32_t agent_address_length; /* sFlow: 4 or 16 bytes are left for the session's agent address; 0 = 4 */
};

/* One message of a block. */
struct capture_export_message {
    uint32_t offset;             /* of its first byte in the block */
    uint32_t length;             /* bytes */
    uint32_t records;            /* data records, those of options too: by so much IPFIX's sequence rises (v5: flow records) */
    uint32_t flows;              /* flow records, or flow samples, among them */
    uint64_t packets;            /* that these count, both directions; sFlow: samples */
    uint64_t octets;
    uint64_t newest_ns;          /* end of the newest flow in it, Unix ns; 0: it has none */
    uint64_t base_ns;            /* v5: Unix time that its First and Last count from; else 0 */
};

/* What an exporter has done since it was made. */
struct capture_export_totals {
    uint64_t flows_read;         /* flows taken from readers that are this exporter's share */
    uint64_t records;            /* flow records (or samples) written */
    uint64_t packets;            /* that those count */
    uint64_t octets;
    uint64_t messages;           /* with flow records or samples */
    uint64_t unexportable_flows; /* that the protocol cannot say: v5, IPv6 */
    uint64_t unexportable_packets;
    uint64_t unexportable_octets;
};

/* What options records say of metering and exporting (RFC 7011, 4.1 to 4.3); totals since the process began. */
struct capture_export_statistics {
    uint64_t observed_packets;   /* IE 86: offered to metering */
    uint64_t dropped_packets;    /* IE 135: lost before metering */
    uint64_t ignored_packets;    /* IE 164: offered and not metered: no IP, malformed */
    uint64_t ignored_octets;     /* IE 165 */
    uint64_t exported_messages;  /* IE 41, to this collector */
    uint64_t exported_flows;     /* IE 42 */
    uint64_t exported_octets;    /* IE 40, of messages */
    uint64_t not_sent_flows;     /* IE 166: lost on the way to this collector */
    uint64_t not_sent_packets;   /* IE 167 */
    uint64_t not_sent_octets;    /* IE 168 */
    uint64_t first_not_sent_ns;  /* Unix ns, 0: none was lost */
    uint64_t last_not_sent_ns;
};

/* An interface as options records name it (IE 10, 82, 83). */
struct capture_export_interface {
    uint32_t index;
    char name[256];
    char description[256];
};

/* A session with one collector: what stamping needs and moves on. Zero-initialise, set struct_size and protocol. */
struct capture_export_session {
    uint32_t struct_size;        /* sizeof(struct capture_export_session) */
    uint32_t protocol;
    uint32_t sequence;           /* of the next message by the protocol's own rule; 0 in a new session */
    bool trace_time;             /* export time is the newest flow's end instead of now: captures from files in NetFlow v5 */
    uint64_t system_init_ns;     /* as the exporter's */
    uint8_t agent_address[16];   /* sFlow: of the host, IPv4 in the first 4 bytes */
    uint8_t agent_address_length; /* 4 or 16 */
};

/* CAPTURE_ERR_INVALID names the field. Free with capture_exporter_destroy. */
CAPTURE_API int capture_exporter_create(const struct capture_export_config *config, capture_exporter_t **out,
                                        struct capture_error_info *error);
CAPTURE_API void capture_exporter_destroy(capture_exporter_t *exporter);

/* Next records of a reader as messages. Full messages are written to `out` (at least 65,535 bytes) and described in `messages`;
 * the one that is not full stays in the exporter and is given out too when `flush` is set and no more records are ready. info is
 * that of the read: records are flows taken, bytes those written. Returns how many messages, or CAPTURE_ERR_LEASE. Never waits. */
CAPTURE_API int capture_exporter_read(capture_exporter_t *exporter, capture_flow_reader_t *reader, uint8_t *out, uint64_t capacity,
                                      struct capture_export_message *messages, uint32_t max_messages, bool flush,
                                      struct capture_batch_info *info);

/* Flows from an array, as capture_exporter_read from a reader; `statistics` may be NULL. *taken: how many, the rest did not fit.
 * Returns how many messages. */
CAPTURE_API int capture_exporter_write(capture_exporter_t *exporter, const struct capture_flow *flows,
                                       const struct capture_flow_statistics *statistics, uint32_t count, uint32_t *taken,
                                       uint8_t *out, uint64_t capacity, struct capture_export_message *messages,
                                       uint32_t max_messages, bool flush);

/* Templates and options templates, in as many messages as they need (v5, sFlow: none). Returns how many, or CAPTURE_ERR_SPACE. */
CAPTURE_API int capture_exporter_templates(capture_exporter_t *exporter, uint8_t *out, uint64_t capacity,
                                           struct capture_export_message *messages, uint32_t max_messages);

/* Options records: statistics, sampling, flow keys, names of interfaces (v5, sFlow: none). Returns how many messages, or
 * CAPTURE_ERR_SPACE. */
CAPTURE_API int capture_exporter_options(capture_exporter_t *exporter, const struct capture_export_statistics *statistics,
                                         const struct capture_export_interface *interfaces, uint32_t interface_count,
                                         uint8_t *out, uint64_t capacity, struct capture_export_message *messages,
                                         uint32_t max_messages);

CAPTURE_API int capture_exporter_get_totals(capture_exporter_t *exporter, struct capture_export_totals *out);

/* Writes export time and sequence into messages about to leave, in their order, and moves the session on. */
CAPTURE_API int capture_export_stamp(struct capture_export_session *session, uint64_t now_ns, uint8_t *block,
                                     const struct capture_export_message *messages, uint32_t count);

/* Counts messages that will never leave, so that the collector sees the gap in the sequence. */
CAPTURE_API int capture_export_skip(struct capture_export_session *session, const struct capture_export_message *messages,
                                    uint32_t count);

/* Sends messages over a connected datagram socket, one each, with as few system calls as there can be. Returns how many left
 * (fewer than `count` when the socket would block), or CAPTURE_ERR_IO with errno in *os_error: the first one not sent met it.
 * Any thread. */
CAPTURE_API int capture_export_send(int socket, const uint8_t *block, const struct capture_export_message *messages,
                                    uint32_t count, int32_t *os_error);

/* Sampled frames for sFlow: 1 in `sampling_rate` of the frames that the capture's filter lets pass, at random distances of 1 to
 * 2 * sampling_rate - 1, the first header_length bytes of each. While the lease is over there are none. */
struct capture_sampler_config {
    uint32_t struct_size;        /* sizeof(struct capture_sampler_config) */
    uint32_t sampling_rate;      /* N of 1 in N, 1..16,777,215 */
    uint32_t header_length;      /* bytes kept of each frame, 64..256; 0 = 128 */
    uint32_t samples;            /* kept for the exporter, a worker, power of two 256..65,536; 0 = 4,096 */
    uint64_t seed;               /* of the distances, 0 = random; tests fix it */
    bool lossless;               /* captures from files only: workers wait for the exporter instead of overwriting samples */
};

/* Before or after capture_start, while the capture lives; CAPTURE_ERR_STATE: 4 samplers are open, the most there can be. Any
 * thread; close frees it, and one thread at a time uses it. */
CAPTURE_API int capture_sampler_open(capture_t *capture, const struct capture_sampler_config *config, capture_sampler_t **out,
                                     struct capture_error_info *error);
CAPTURE_API void capture_sampler_close(capture_sampler_t *sampler);

/* Next samples as sFlow messages, as capture_exporter_read; CAPTURE_ERR_INVALID: the exporter's protocol is another. info.lost:
 * samples overwritten unread, which flow samples report as their drops. */
CAPTURE_API int capture_exporter_read_samples(capture_exporter_t *exporter, capture_sampler_t *sampler, uint8_t *out,
                                              uint64_t capacity, struct capture_export_message *messages, uint32_t max_messages,
                                              bool flush, struct capture_batch_info *info);

/* Counters of an interface as the kernel has them (sFlow version 5, if_counters). */
struct capture_interface_counters {
    uint32_t index;
    uint32_t type;               /* IANA ifType, 6 = Ethernet */
    uint64_t speed;              /* bits per second, 0 = unknown */
    uint32_t direction;          /* 0 unknown, 1 full duplex, 2 half duplex, 3 in, 4 out */
    uint32_t status;             /* bit 0: ifAdminStatus up, bit 1: ifOperStatus up */
    uint64_t in_octets;
    uint32_t in_unicast, in_multicast, in_broadcast, in_discards, in_errors, in_unknown_protocols;
    uint64_t out_octets;
    uint32_t out_unicast, out_multicast, out_broadcast, out_discards, out_errors;
    uint32_t promiscuous;
};

/* Counters samples, one an interface. Returns how many messages, CAPTURE_ERR_SPACE, or CAPTURE_ERR_INVALID: the exporter's protocol
 * is another. */
CAPTURE_API int capture_exporter_counters(capture_exporter_t *exporter, const struct capture_interface_counters *counters,
                                          uint32_t count, uint8_t *out, uint64_t capacity,
                                          struct capture_export_message *messages, uint32_t max_messages);

/* What is known of the way to an address. */
struct capture_route {
    uint8_t next_hop[16];        /* all 0: on link, or unknown */
    uint8_t next_hop_version;    /* 4, 6 or 0: none */
    uint8_t prefix_length;       /* of the route (else of the AS database's network); valid with has_prefix */
    bool has_prefix;
    uint32_t as_number;          /* 0 = unknown */
    uint32_t interface_index;    /* that the route leaves by, 0 = unknown */
};

struct capture_routes_config {
    uint32_t struct_size;        /* sizeof(struct capture_routes_config) */
    bool kernel;                 /* the main routing table of this network namespace, followed by netlink */
    const char *asn_database;    /* a MaxMind DB with autonomous_system_number (GeoLite2-ASN), or NULL */
};

/* Reads the tables. CAPTURE_ERR_FILE, _INVALID: the database; _BACKEND: this build has no libmaxminddb; _IO: netlink. Release with
 * capture_routes_release; exporters keep it alive. */
CAPTURE_API int capture_routes_open(const struct capture_routes_config *config, capture_routes_t **out,
                                    struct capture_error_info *error);
CAPTURE_API void capture_routes_release(capture_routes_t *routes);

/* Takes over what has changed since: routes told by netlink, a database file replaced by another. Never waits for the network. Any
 * thread; looks at nothing twice within a second. */
CAPTURE_API int capture_routes_refresh(capture_routes_t *routes, struct capture_error_info *error);

/* addr: 4 or 16 bytes in network order. Any thread. */
CAPTURE_API int capture_routes_lookup(capture_routes_t *routes, const uint8_t *addr, uint8_t ip_version, struct capture_route *out);

#endif
