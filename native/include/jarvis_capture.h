/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JARVIS Capture, native core: the one public header; what concerns export is in jarvis_capture_export.h, which it includes.
 *
 * Frames come from a backend, are decoded once, counted in the flow table, and leave as finished bytes (protobuf FlowBatch, JSON
 * lines, CSV, columns). Flow semantics follow RFC 7011 (IPFIX) and RFC 5103 (biflows); docs/flow-semantics.md has them in full.
 *
 * Conventions, unless a declaration says otherwise
 *   errors      0 or a count on success, a negative enum capture_error on failure; where a `struct capture_error_info *` is taken
 *               (NULL allowed) it is filled with the field at fault, its value and what would be accepted
 *   ownership   strings and arrays passed in are copied before the call returns; handles are freed by the function named there
 *   threads     one thread at a time may call into one handle's life cycle (init .. destroy); what may be called from any thread
 *               meanwhile says "any thread"
 *   units       times are nanoseconds since the Unix epoch, lengths and octets are bytes, integers are in host byte order,
 *               addresses in network byte order
 *
 * The header is also read by cffi, preprocessed with JARVIS_CAPTURE_CDEF defined: keep it free of macros but for int constants.
 */
#ifndef JARVIS_CAPTURE_H
#define JARVIS_CAPTURE_H

#ifdef JARVIS_CAPTURE_CDEF
#define CAPTURE_API
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#define CAPTURE_API __attribute__((visibility("default")))
#ifdef __cplusplus
extern "C" {
#endif
#endif

typedef struct capture capture_t;                          /* one capture: backend, workers, flow tables, record logs */
typedef struct capture_flow_reader capture_flow_reader_t;  /* one subscriber's place in the record logs */
typedef struct capture_authority capture_authority_t;      /* who may have packets looked at, and until when */
typedef struct capture_exporter capture_exporter_t;        /* records -> messages of NetFlow, IPFIX or sFlow, for one collector */
typedef struct capture_sampler capture_sampler_t;          /* one sFlow exporter's place in the sampled frames of a capture */
typedef struct capture_routes capture_routes_t;            /* next hops, prefix lengths and AS numbers by address */
struct capture_module;                                     /* a backend in a shared object of its own, see capture_add_module */

enum capture_error {
    CAPTURE_OK = 0,
    CAPTURE_ERR_INVALID = -1,      /* an argument is out of range; the error info names it */
    CAPTURE_ERR_NO_MEMORY = -2,    /* memory for a ring or table could not be mapped */
    CAPTURE_ERR_NO_INTERFACE = -3, /* no such network interface */
    CAPTURE_ERR_PERMISSION = -4,   /* CAP_NET_RAW (or read permission on the file) is missing */
    CAPTURE_ERR_FILTER = -5,       /* the BPF expression does not compile; the info carries libpcap's message */
    CAPTURE_ERR_BACKEND = -6,      /* the backend is unknown, not built in, or not usable here */
    CAPTURE_ERR_FILE = -7,         /* not a capture file, or damaged in its file header */
    CAPTURE_ERR_STATE = -8,        /* not allowed in this state (e.g. start twice) */
    CAPTURE_ERR_IO = -9,           /* the operating system refused; the info carries errno's text */
    CAPTURE_ERR_TIMEOUT = -10,     /* a worker did not answer in time */
    CAPTURE_ERR_SPACE = -11,       /* the caller's buffer cannot hold one record */
    CAPTURE_ERR_TOKEN = -12,       /* a resume token is malformed or of another capture */
    CAPTURE_ERR_NOT_FOUND = -13,   /* no such flow */
    CAPTURE_ERR_LEASE = -14,       /* the capture is bound to an authority that has no lease in force: nothing is given out */
    CAPTURE_ERR_REFUSED = -15      /* an authority refuses a lease or a command; the info's field is the reason, see docs/reasons.md */
};

/* What was wrong with one call. Strings are NUL-terminated and empty when they do not apply. */
struct capture_error_info {
    int32_t code;      /* enum capture_error */
    char field[32];    /* the configuration field at fault, e.g. "snaplen"; of _LEASE and _REFUSED the reason, e.g. "LEASE_STALE" */
    char message[256]; /* one sentence: the value, why it is refused, what would be accepted */
};

enum capture_timestamp_source {
    CAPTURE_TIMESTAMP_DEFAULT = 0,  /* file: what the file holds; live: kernel */
    CAPTURE_TIMESTAMP_KERNEL = 1,   /* software timestamp taken by the kernel on receipt */
    CAPTURE_TIMESTAMP_HARDWARE = 2, /* the NIC's own; refused where the NIC or backend has none */
    CAPTURE_TIMESTAMP_PTP = 3,      /* kernel timestamps carried over to the interface's PTP hardware clock; refused where it has none */
    CAPTURE_TIMESTAMP_NTP = 4       /* kernel timestamps; refused while adjtimex(2) says that the system clock is not synchronised */
};

/* What to capture. Zero-initialise, set struct_size, fill in. Exactly one of interface and files. */
struct capture_config {
    uint32_t struct_size;          /* sizeof(struct capture_config) */
    const char *interface;         /* network interface to capture from, or a device as the backend names it (zc:eth0), or NULL */
    const char *const *files;      /* capture files, read in this order as one trace, or NULL */
    uint32_t file_count;
    const char *backend;           /* "auto" (NULL), "file", "pcap", "afpacket", "pfring", or a module's */
    const char *filter;            /* BPF expression, or NULL or "" for everything */
    uint32_t snaplen;              /* bytes kept of each frame, 64..262144; 0 = 262144 */
    uint32_t buffer_size_mb;       /* kernel ring of a live capture over all workers, MiB, 64..8192; 0 = 64 */
    uint32_t workers;              /* 0: frames are processed inside capture_poll; 1..64: that many capture threads (pcap: 1). Of files
                                    * each meters the flows of its share of the address pairs */
    const int32_t *worker_cpus;    /* CPU per worker, worker_cpu_count of them, or NULL for no pinning */
    uint32_t worker_cpu_count;
    bool promiscuous;
    uint32_t timestamp_source;     /* enum capture_timestamp_source */
    uint32_t packet_ring_mb;       /* ring for capture_packets_next, MiB, 0 (off) or 1..8192; rounded up to a power of two.
                                    * When it is full, a live capture drops (packet_ring_dropped), a file waits to be drained */
    bool exclusive;                /* backends xdp and dpdk may take frames away from a host that uses the interface itself */
    const char *const *dpdk_eal_args; /* backend dpdk: arguments of DPDK's EAL, dpdk_eal_arg_count of them, or NULL; others ignore it */
    uint32_t dpdk_eal_arg_count;   /* 0..64 */
    const char *const *interfaces; /* several interfaces (1..32, each once) in place of `interface`; every worker reads a queue of each */
    uint32_t interface_count;
    uint32_t busy_poll_us;         /* afpacket, xdp: the kernel polls the driver for so long before it sleeps, 0 (off) to 1,000 */
    uint64_t loss_threshold;       /* more frames lost than this within one second raise CAPTURE_EVENT_LOSS; 0 = any */
};

enum { CAPTURE_INTERFACES_MAX = 32, CAPTURE_INTERFACE_NAME_MAX = 256 };

enum capture_interface_state {
    CAPTURE_INTERFACE_UP = 1,
    CAPTURE_INTERFACE_DOWN = 2,    /* it is there, but down: capture goes on when it comes up */
    CAPTURE_INTERFACE_GONE = 3     /* deleted, or its backend failed; with it goes the capture if no other interface is left */
};

/* One interface of a live capture. Counters are cumulative since it was added. */
struct capture_interface_info {
    char name[256];
    char backend[16];
    char detail[128];              /* as capture_describe_backend */
    uint32_t interface_index;      /* the kernel's ifindex, 0 where the device is none of the kernel's */
    uint32_t state;                /* enum capture_interface_state */
    uint64_t received;             /* frames offered, lost ones included */
    uint64_t dropped_nic;
    uint64_t dropped_kernel;
    char error[128];               /* why it is gone or down, or empty */
};

/* The clock behind the timestamps in force. */
struct capture_clock_info {
    uint32_t source;               /* enum capture_timestamp_source, never DEFAULT for a live capture */
    bool synchronised;             /* ntp: adjtimex says so; others: false, it cannot be known or there is nothing to be synchronised */
    int64_t offset_ns;             /* that clock minus the system's (CLOCK_REALTIME); ntp: adjtimex's estimate of the system's error */
    uint64_t error_bound_ns;       /* of offset_ns or, for ntp, of the clock (maxerror); UINT64_MAX = unknown */
    uint64_t steps;                /* steps of the clock seen since the start, see CAPTURE_EVENT_CLOCK_STEP */
    char detail[96];               /* e.g. the PTP clock's device */
};

enum capture_event_type {
    CAPTURE_EVENT_LOSS = 1,        /* value: frames lost since the last such event, over all places, and flow records that a full table
                                    * evicted; at most one a second, and one at the stop */
    CAPTURE_EVENT_CLOCK_STEP = 2,  /* delta: how far the clock stepped, ns; more than 100 ms within a second */
    CAPTURE_EVENT_CLOCK_SYNC = 3,  /* value 1: the clock is synchronised (ptp: can be read) again, 0: no longer */
    CAPTURE_EVENT_INTERFACE = 4,   /* value: enum capture_interface_state; `interface` says which */
    CAPTURE_EVENT_INTERFACE_ADDED = 5,
    CAPTURE_EVENT_INTERFACE_REMOVED = 6
};

/* Something that happened to a capture, worth telling an operator. The newest 256 are kept. */
struct capture_event {
    uint64_t sequence;             /* from 1, without gaps */
    uint64_t time_unix_ns;         /* system clock when it was noticed */
    uint64_t value;
    int64_t delta;
    uint32_t type;                 /* enum capture_event_type */
    char interface[256];           /* or empty */
    char message[256];             /* one sentence */
};

/* Which optional statistics each flow carries: a parallel array each, so that what is off costs nothing. */
enum capture_statistics {
    CAPTURE_STATISTICS_TCP = 1,       /* retransmissions, out-of-order, zero windows, handshake round-trip times */
    CAPTURE_STATISTICS_SIZES = 2,     /* transport payload bytes a packet */
    CAPTURE_STATISTICS_INTERVALS = 4, /* time between packets of one direction */
    CAPTURE_STATISTICS_HEADERS = 8    /* MAC addresses, inner VLAN id, TTLs, IPv6 flow label */
};

/* Packet selection before metering (RFC 5475). */
enum capture_sampling {
    CAPTURE_SAMPLING_NONE = 0,
    CAPTURE_SAMPLING_SYSTEMATIC = 1,  /* every N-th packet of a worker (5.1) */
    CAPTURE_SAMPLING_FLOW_HASH = 2    /* every packet of one flow in N: the hash of addresses, ports and protocol is the same on every host (6.2) */
};

/* Which IP header of a tunnelled packet makes its flow. What is not (or cannot be looked into as) a tunnel has one header only. */
enum capture_tunnel {
    CAPTURE_TUNNEL_OUTER = 0,    /* the outermost */
    CAPTURE_TUNNEL_INNER = 1,    /* the innermost */
    CAPTURE_TUNNEL_BOTH = 2      /* both: the packet counts in two flows */
};

enum capture_tunnel_type {       /* what carries an inner flow; its id is given behind it */
    CAPTURE_TUNNEL_TYPE_NONE = 0,
    CAPTURE_TUNNEL_TYPE_GRE = 1,      /* key, 0 without one; PPTP: call id */
    CAPTURE_TUNNEL_TYPE_ERSPAN = 2,   /* session id; type I: 0 */
    CAPTURE_TUNNEL_TYPE_VXLAN = 3,    /* VNI */
    CAPTURE_TUNNEL_TYPE_GENEVE = 4,   /* VNI */
    CAPTURE_TUNNEL_TYPE_GTP_U = 5,    /* TEID */
    CAPTURE_TUNNEL_TYPE_IP_IN_IP = 6, /* 0; 4in4, 6in4, 4in6, 6in6 */
    CAPTURE_TUNNEL_TYPE_TEREDO = 7,   /* 0 */
    CAPTURE_TUNNEL_TYPE_L2TP = 8,     /* version 2: tunnel id * 65536 + session id */
    CAPTURE_TUNNEL_TYPE_L2TP_V3 = 9   /* session id */
};

/* Flow metering. A timeout of 0 means never; with both 0 nothing splits a flow: one record per key for the whole trace. */
struct capture_flow_config {
    uint32_t struct_size;        /* sizeof(struct capture_flow_config) */
    uint32_t max_flows;          /* live flows over all workers, 4,096..16,777,216; 0 = 1,048,576 */
    uint64_t idle_timeout_ns;    /* 0 or 1 s..24 h */
    uint64_t active_timeout_ns;  /* 0 or 1 s..24 h */
    uint32_t log_records;        /* finished records each worker keeps for readers, power of two 1,024..16,777,216; 0 = 65,536 */
    uint32_t fragment_slots;     /* fragment cache, power of two 256..1,048,576; 0 = 8,192 */
    uint64_t hash_seed;          /* 0 = random (flooding-proof); tests fix it */
    uint32_t tunnel;             /* enum capture_tunnel */
    uint32_t statistics;         /* enum capture_statistics, or'ed */
    uint32_t sampling;           /* enum capture_sampling */
    uint32_t sampling_interval;  /* N of 1 in N, 1..1,000,000; without sampling 0 */
    bool merge_interfaces;       /* a flow seen on two interfaces is one record, which names both; else a record each */
    bool mirror_timestamps;      /* inner flows of ERSPAN III take their times from the mirror's header */
};

/* Counters of one capture, summed over its workers; all are monotonic while it runs but for the gauges. In every snapshot
 * received = metered + filtered + unsampled + non_ip + malformed + paused + dropped_nic + dropped_kernel + dropped_user + in_flight,
 * and after a graceful stop in_flight is 0. */
struct capture_stats {
    uint64_t time_unix_ns;           /* when the snapshot was taken */
    uint64_t elapsed_ns;             /* since capture_start, monotonic clock */
    uint64_t received;               /* frames offered to the capture, lost ones included */
    uint64_t received_octets;        /* their bytes on the wire (of those that reached the core) */
    uint64_t metered;                /* IP packets counted in a flow; with CAPTURE_TUNNEL_BOTH each once, though in two flows */
    uint64_t metered_octets;         /* their IP total lengths (RFC 7011: IE 1); with CAPTURE_TUNNEL_BOTH the outer ones */
    uint64_t filtered;               /* not matched by the BPF filter */
    uint64_t non_ip;                 /* ARP, LLDP, ... */
    uint64_t malformed;              /* header truncated or inconsistent before a flow key could be read */
    uint64_t paused;                 /* read while the lease (or deadline) was over, or received meanwhile and read later */
    uint64_t dropped_nic;            /* by the network card or driver */
    uint64_t dropped_kernel;         /* by the kernel because its ring was full */
    uint64_t dropped_user;           /* by the core itself */
    uint64_t in_flight;              /* gauge: received, not yet processed */
    uint64_t truncated;              /* frames longer than snaplen, cut (they are metered) */
    uint64_t fragments_matched;      /* non-first fragments given the ports of their first one */
    uint64_t fragments_unmatched;    /* non-first fragments with no first one known; metered with ports 0 */
    uint64_t time_regressions;       /* packets older than their flow's last one */
    uint64_t packet_ring_dropped;    /* frames metered but not delivered to capture_packets_next: its ring was full */
    uint64_t flows_active;           /* gauge */
    uint64_t flows_total;            /* flow records created */
    uint64_t flows_ended[6];         /* records ended, by flowEndReason (IE 136) 1..5; index 0 unused. [5] = evicted, table full */
    uint64_t log_records_written;    /* records written to the record logs */
    double throughput_bps;           /* gauge: bits per second on the wire since the previous snapshot of the workers (about 1 s) */
    double throughput_pps;           /* gauge: packets per second, likewise */
    double ring_usage;               /* gauge: share of the kernel or packet ring in use, 0..1, the fullest worker's */
    uint64_t flow_table_bytes;       /* memory of tables and logs */
    uint64_t tunnelled;              /* packets counted in an inner flow: with _TUNNEL_INNER part of metered, with _BOTH besides */
    uint64_t tunnelled_octets;       /* their inner IP total lengths: likewise part of metered_octets, or besides */
    uint64_t unsampled;              /* IP packets that sampling left out */
    uint64_t clock_steps;            /* steps of the clock, see CAPTURE_EVENT_CLOCK_STEP */
    uint64_t statistics_bytes;       /* part of flow_table_bytes that the optional statistics take */
};

enum capture_flow_state {
    CAPTURE_FLOW_STATE_ACTIVE = 1,
    CAPTURE_FLOW_STATE_CLOSING = 2,  /* one side has sent FIN */
    CAPTURE_FLOW_STATE_CLOSED = 3    /* both FINs seen, or RST */
};

enum capture_flow_end_reason {       /* IANA flowEndReason, IE 136 */
    CAPTURE_FLOW_END_NONE = 0,       /* still in the table */
    CAPTURE_FLOW_END_IDLE = 1,
    CAPTURE_FLOW_END_ACTIVE = 2,
    CAPTURE_FLOW_END_DETECTED = 3,
    CAPTURE_FLOW_END_FORCED = 4,
    CAPTURE_FLOW_END_RESOURCES = 5
};

/* One flow record. Source is the sender of the first packet ("forward", RFC 5103 biflowDirection arbitrary/initiator). */
struct capture_flow {
    uint64_t flow_id;            /* FNV-1a 64 of the canonical key bytes, docs/flow-semantics.md */
    uint8_t src_addr[16];        /* IPv4: the first 4 bytes, the rest 0 */
    uint8_t dst_addr[16];
    uint16_t src_port;           /* 0 but for TCP, UDP, SCTP */
    uint16_t dst_port;
    uint8_t ip_version;          /* 4 or 6 */
    uint8_t ip_protocol;         /* IANA protocol number */
    uint16_t vlan_id;            /* outermost 802.1Q id, 0 = untagged; inner flows: the outermost inside, or ERSPAN's */
    uint64_t fwd_packets;
    uint64_t fwd_octets;         /* IP total lengths */
    uint64_t rev_packets;
    uint64_t rev_octets;
    uint64_t start_time_ns;
    uint64_t end_time_ns;        /* of the last packet, never before start */
    uint64_t first_packet_id;    /* number of the packet within its worker, of files within the trace, from 1 */
    uint64_t last_packet_id;
    uint16_t fwd_tcp_flags;      /* union over the packets, IE 6 */
    uint16_t rev_tcp_flags;
    uint16_t interface_index;    /* live: the kernel's ifindex; pcapng: the interface's number + 1; else 1 */
    uint8_t icmp_type;           /* of the first packet; ICMP and ICMPv6 only */
    uint8_t icmp_code;
    uint8_t dscp;                /* of the first packet, 0..63 */
    uint8_t state;               /* enum capture_flow_state */
    uint8_t end_reason;          /* enum capture_flow_end_reason */
    uint8_t tunnel_type;         /* enum capture_tunnel_type: of the tunnel right around an inner flow; 0 for all others */
    uint32_t tunnel_id;          /* part of an inner flow's key */
    uint16_t second_interface_index; /* merge_interfaces: another interface that saw the flow, the first such; else 0 */
    uint16_t reserved;           /* 0 */
    uint32_t sampling_interval;  /* N of the 1-in-N sampling in force; 0 = every packet counted */
};

/* min, max and mean of no value at all are 0, as is the deviation of one. Standard deviation of the population. */
struct capture_spread {
    uint64_t min, max;
    double mean, stddev;
};

/* Header fields of one direction's packets; MAC addresses, VLAN and label are the first packet's. All 0: no such packet. */
struct capture_headers {
    uint8_t src_mac[6];          /* 0 where the link layer has none */
    uint8_t dst_mac[6];
    uint16_t inner_vlan_id;      /* of the tag behind the outermost one (802.1Q in 802.1ad), 0 = none */
    uint8_t min_ttl, max_ttl;    /* IPv4 TTL, IPv6 hop limit */
    uint32_t flow_label;         /* IPv6, 20 bits */
    uint32_t reserved;           /* 0 */
};

/* The optional statistics of one flow; those that are off are 0. By direction as in struct capture_flow. */
struct capture_flow_statistics {
    uint32_t fwd_retransmissions;  /* TCP segments with data, SYN or FIN whose sequence numbers were all seen before (keep-alives apart) */
    uint32_t rev_retransmissions;
    uint32_t fwd_out_of_order;     /* TCP segments that fill a gap which later ones left and which is not acknowledged yet */
    uint32_t rev_out_of_order;
    uint32_t fwd_zero_windows;     /* TCP segments that announce a window of 0 (RST apart) */
    uint32_t rev_zero_windows;
    uint64_t syn_to_synack_ns;     /* handshake as seen at the point of capture: the responder's side of the round trip, 0 = not seen */
    uint64_t synack_to_ack_ns;     /* the initiator's side; their sum is the round-trip time */
    struct capture_spread fwd_payload, rev_payload;    /* transport payload, bytes a packet */
    struct capture_spread fwd_interval, rev_interval;  /* ns between packets of that direction */
    struct capture_headers fwd_headers, rev_headers;
};

enum capture_flow_sort {
    CAPTURE_SORT_NONE = 0,       /* table order */
    CAPTURE_SORT_PACKETS = 1,    /* both directions, most first */
    CAPTURE_SORT_OCTETS = 2,
    CAPTURE_SORT_START = 3,      /* newest first */
    CAPTURE_SORT_LAST = 4,       /* most recently seen first */
    CAPTURE_SORT_DURATION = 5    /* longest first */
};

/* Which flows of the live table. Zero-initialised with limit set: any. */
struct capture_flow_query {
    const char *filter;          /* BPF expression decided on each flow's addresses, ports, protocol and VLAN, either direction; or NULL */
    uint64_t min_packets;        /* both directions together */
    uint32_t sort_by;            /* enum capture_flow_sort */
    uint32_t limit;              /* 1..100,000 */
};

enum capture_reader_start {
    CAPTURE_READER_OLDEST = 0,   /* the oldest record still kept */
    CAPTURE_READER_NEWEST = 1,   /* only records to come */
    CAPTURE_READER_LAST = 2,     /* the last_records newest, then those to come */
    CAPTURE_READER_TOKEN = 3     /* after the batch that carried this resume token: nothing repeats, what was overwritten is reported lost */
};

struct capture_reader_config {
    uint32_t struct_size;        /* sizeof(struct capture_reader_config) */
    const char *filter;          /* as in capture_flow_query */
    uint64_t min_packets;
    uint64_t since_ns;           /* only records whose end time is not before this; 0 = any */
    uint32_t start;              /* enum capture_reader_start */
    uint32_t last_records;
    const uint8_t *token;
    uint32_t token_length;
    bool lossless;               /* the packet path waits for this reader (file backend only) */
};

/* What one read call returned. A gap (lost > 0) lies before the returned records and is reported exactly once. */
struct capture_batch_info {
    uint32_t records;            /* records written to the buffer */
    uint32_t shard;              /* worker whose log they came from */
    uint64_t bytes;              /* bytes written to the buffer */
    uint64_t first_sequence;     /* of the first record looked at in that shard */
    uint64_t next_sequence;      /* the shard's next one */
    uint64_t lost;               /* records overwritten before this reader came to them */
    uint64_t first_lost_sequence;
    uint64_t last_lost_sequence;
    bool more;                   /* more records are ready now */
    bool end;                    /* the capture has stopped and every record was read */
};

enum capture_text_format { CAPTURE_TEXT_JSON = 1, CAPTURE_TEXT_CSV = 2 };

/* Columns for capture_reader_read_columns: arrays owned by the caller with room for max_records each; NULL skips a column. */
struct capture_flow_columns {
    uint64_t *flow_id;
    uint8_t *src_addr;           /* 16 bytes a record: IPv6, or IPv4 as ::ffff:a.b.c.d */
    uint8_t *dst_addr;
    uint16_t *src_port;
    uint16_t *dst_port;
    uint8_t *ip_version;
    uint8_t *ip_protocol;
    uint16_t *vlan_id;
    uint64_t *fwd_packets;
    uint64_t *fwd_octets;
    uint64_t *rev_packets;
    uint64_t *rev_octets;
    int64_t *start_time_ns;
    int64_t *end_time_ns;
    uint64_t *first_packet_id;
    uint64_t *last_packet_id;
    uint16_t *fwd_tcp_flags;
    uint16_t *rev_tcp_flags;
    uint16_t *interface_index;
    uint8_t *icmp_type;
    uint8_t *icmp_code;
    uint8_t *dscp;
    uint8_t *state;
    uint8_t *end_reason;
    uint32_t *tunnel_id;
    uint8_t *tunnel_type;
    uint16_t *second_interface_index;
    uint32_t *sampling_interval;
    /* Statistics, 0 where the capture keeps none of the kind. */
    uint32_t *fwd_retransmissions;
    uint32_t *rev_retransmissions;
    uint32_t *fwd_out_of_order;
    uint32_t *rev_out_of_order;
    uint32_t *fwd_zero_windows;
    uint32_t *rev_zero_windows;
    uint64_t *syn_to_synack_ns;
    uint64_t *synack_to_ack_ns;
    uint64_t *fwd_payload_min;
    uint64_t *fwd_payload_max;
    double *fwd_payload_mean;
    double *fwd_payload_stddev;
    uint64_t *rev_payload_min;
    uint64_t *rev_payload_max;
    double *rev_payload_mean;
    double *rev_payload_stddev;
    uint64_t *fwd_interval_min_ns;
    uint64_t *fwd_interval_max_ns;
    double *fwd_interval_mean_ns;
    double *fwd_interval_stddev_ns;
    uint64_t *rev_interval_min_ns;
    uint64_t *rev_interval_max_ns;
    double *rev_interval_mean_ns;
    double *rev_interval_stddev_ns;
    uint8_t *fwd_src_mac;        /* 6 bytes a record */
    uint8_t *fwd_dst_mac;
    uint8_t *rev_src_mac;
    uint8_t *rev_dst_mac;
    uint16_t *fwd_inner_vlan_id;
    uint16_t *rev_inner_vlan_id;
    uint8_t *fwd_min_ttl;
    uint8_t *fwd_max_ttl;
    uint8_t *rev_min_ttl;
    uint8_t *rev_max_ttl;
    uint32_t *fwd_flow_label;
    uint32_t *rev_flow_label;
};

struct capture_backend_info {
    char name[16];
    char description[96];
    char reason[160];            /* why it is not usable here, or how it would be chosen */
    bool usable;
    bool live;                   /* captures from interfaces (else from files) */
};

/* One frame in the packet ring, valid until capture_packets_release. */
struct capture_packet {
    uint64_t packet_id;          /* number within its worker, of files within the trace, from 1: FlowRecord's first/last_packet_id count the same way */
    uint64_t timestamp_ns;
    uint64_t offset;             /* of its first byte from the ring's base */
    uint32_t captured_length;
    uint32_t wire_length;
    uint16_t interface_index;
    uint16_t link_type;          /* pcap LINKTYPE_* */
    uint16_t vlan_tci;           /* tag taken off by the kernel, 0 = none */
    uint16_t reserved;
};

struct capture_packet_batch {
    const uint8_t *base;                   /* the ring's first byte; frames never wrap (mirrored mapping) */
    uint64_t size;                         /* bytes readable from base */
    const struct capture_packet *packets;
    uint32_t count;
};

/* Version of the library, "MAJOR.MINOR.PATCH". Any thread. */
CAPTURE_API const char *capture_version(void);

/* One line of English for an enum capture_error. Any thread; never NULL; static storage. */
CAPTURE_API const char *capture_strerror(int code);

/* Adds the backend of a loaded module libjarvis_capture_<name>.so; the caller has verified its bytes and never unloads it.
 * CAPTURE_ERR_INVALID (abi, version, ops): the module is of another release or its table has a hole; the name is known already.
 * CAPTURE_ERR_STATE: a configuration has got its backend already: modules come first. CAPTURE_ERR_NO_MEMORY: 16 at most.
 * Any thread. */
CAPTURE_API int capture_add_module(const struct capture_module *module, struct capture_error_info *error);

/* Makes a backend that is not here known by name (1 to 15 bytes), so that it is listed and refused with the reason why. The same
 * errors as capture_add_module. Any thread. */
CAPTURE_API int capture_note_module(const char *name, const char *description, const char *reason);

/* What a module exports; the library itself has no such symbol. Static storage; any thread. */
CAPTURE_API const struct capture_module *jarvis_capture_module(void);

/* Every backend of this build with its usability for `interface` (NULL: in general). Writes at most `capacity` entries;
 * returns how many there are. Any thread. */
CAPTURE_API int capture_get_backends(const char *interface, struct capture_backend_info *out, uint32_t capacity);

/* Name of the backend that "auto" would take for this configuration ("several" when its interfaces have different ones), or a
 * negative error. `name` holds 16 bytes. Any thread. */
CAPTURE_API int capture_select_backend(const struct capture_config *config, char *name, struct capture_error_info *error);

/* Checks a BPF expression without starting anything: CAPTURE_OK or CAPTURE_ERR_FILTER. Any thread. */
CAPTURE_API int capture_check_filter(const char *filter, struct capture_error_info *error);

/* Makes a capture; nothing is opened on the wire yet, files are opened and checked. Free with capture_destroy. */
CAPTURE_API int capture_init(const struct capture_config *config, capture_t **out, struct capture_error_info *error);

/* Turns metering on, before capture_start. Allocates the tables. */
CAPTURE_API int capture_flow_enable(capture_t *capture, const struct capture_flow_config *config, struct capture_error_info *error);

/* Opens the backend and starts the workers (if any). */
CAPTURE_API int capture_start(capture_t *capture, struct capture_error_info *error);

/* Moves the capture forward for at most timeout_ms.
 * workers = 0: processes frames in the calling thread until the timeout, the end of input, a damaged place in a file (see
 * capture_get_error), or until a lossless reader must drain its log, or the consumer the packet ring of a file.
 * workers > 0: waits until records or packets are ready.
 * Returns 1 while there is more to come, 0 at the end of input (files) or after capture_stop, or a negative error. */
CAPTURE_API int capture_poll(capture_t *capture, uint32_t timeout_ms);

/* How the backend captures (mode, queues, memory), a few words NUL-terminated; empty before the start, after the stop, and where
 * there is nothing to say. At most `size` bytes are written. Any thread. */
CAPTURE_API int capture_describe_backend(capture_t *capture, char *text, uint32_t size);

/* Stops. graceful: what the ring holds is processed first, then every flow in the table ends with reason 4 (forced end).
 * Not graceful: the ring is discarded and counted as dropped_user; flows still end with reason 4. Readers may go on reading. */
CAPTURE_API int capture_stop(capture_t *capture, bool graceful);

/* Stops if running and frees everything, readers included. NULL is allowed. */
CAPTURE_API void capture_destroy(capture_t *capture);

/* Message of the last asynchronous failure (interface gone, file damaged in the middle), or "". Any thread; copied out. */
CAPTURE_API int capture_get_error(capture_t *capture, struct capture_error_info *error);

/* Every asynchronous failure so far, in the order in which they came, each once: writes at most `capacity`, returns how many
 * there are. The first 64 are kept. Any thread; copied out. */
CAPTURE_API int capture_get_errors(capture_t *capture, struct capture_error_info *errors, uint32_t capacity);

/* The oldest kept event after `after_sequence` (0: of all). 1: written to *out, and a gap in `sequence` is events that were
 * overwritten; 0: there is none yet. Any thread; never waits. */
CAPTURE_API int capture_next_event(capture_t *capture, uint64_t after_sequence, struct capture_event *out);

/* The interfaces of a live capture, removed ones left out; writes at most `capacity`, returns how many there are. Any thread. */
CAPTURE_API int capture_get_interfaces(capture_t *capture, struct capture_interface_info *out, uint32_t capacity);

/* Adds an interface to a running live capture; it is opened before the call returns, with the capture's own configuration.
 * CAPTURE_ERR_INVALID: it is captured already, or there are CAPTURE_INTERFACES_MAX. Any thread. */
CAPTURE_API int capture_add_interface(capture_t *capture, const char *interface, struct capture_error_info *error);

/* Removes one: what its rings hold is processed first, its counters stay in the capture's. The last one cannot be removed:
 * stop the capture. Any thread. */
CAPTURE_API int capture_remove_interface(capture_t *capture, const char *interface, struct capture_error_info *error);

/* The clock behind the timestamps, looked at no more than a second ago. Any thread. */
CAPTURE_API int capture_get_clock(capture_t *capture, struct capture_clock_info *out);

/* Any thread; never waits for the packet path. */
CAPTURE_API int capture_get_stats(capture_t *capture, struct capture_stats *out);

/* Dead-man's switch of a program's own: from this CLOCK_BOOTTIME instant (ns) on, frames are counted as paused and nothing is metered
 * or delivered, until a later deadline is set. 0 = no deadline. CAPTURE_ERR_STATE: the capture is bound to an authority, whose lease
 * is the deadline. Any thread. */
CAPTURE_API int capture_set_deadline(capture_t *capture, uint64_t boottime_ns);

/* Authorities: leases and signed commands judged here, by the fleet's command key, so that no error, stall or change of the program
 * around the core lengthens the right to capture. The messages are jarvis.capture.v1.Lease and CommandAuthorization (trust.proto);
 * the signatures Ed25519 (RFC 8032) over the framing that docs/trust.md describes.
 *
 *   note_challenge → (quote, verifier) → accept_lease → admit(StartCapture) → capture_set_authority, capture_start → admit(...) ...
 *
 * A capture that is bound to an authority
 *   is started only by a StartCapture command that was admitted, and given interfaces only by an admitted UpdateInterfaces
 *   meters and delivers while a lease is in force, by CLOCK_BOOTTIME as this library reads it. What is read from a ring after the
 *   end, and what was in one when the next lease came (or came until the worker's next turn, 20 ms), is counted as paused
 *   gives out nothing (readers, queries, packets: CAPTURE_ERR_LEASE) while none is; what was finished until then or ends meanwhile
 *   stays in its logs for the next lease. Counters, events and the stop need none.
 *
 * Any thread may call any of these at any time. */

/* Whom leases must name. Zero-initialise, set struct_size, fill in; everything is copied. */
struct capture_authority_config {
    uint32_t struct_size;               /* sizeof(struct capture_authority_config) */
    const char *agent_id;               /* 32 characters of a-z 2-7 */
    const uint8_t *command_public_key;  /* Ed25519, 32 bytes: given at enrolment, never by a lease */
    const uint8_t *session_id;          /* of this process, 16 bytes */
    const uint8_t *ak_name;             /* TPM2B_NAME contents of the attestation key, 34 bytes */
    const uint8_t *firmware_sha256;     /* of this library's file as it was measured, 32 bytes */
    uint64_t lease_sequence;            /* the highest seen before this process: only higher ones are accepted */
    uint64_t audit_sequence;            /* of the controller's audit chain, likewise; lower ones are refused */
    const uint8_t *audit_head;          /* its head at audit_sequence, 32 bytes, or NULL */
};

struct capture_lease {
    uint64_t sequence;                  /* 0: there was none yet */
    uint64_t quoted_ns;                 /* CLOCK_BOOTTIME when its challenge was noted */
    uint64_t end_ns;                    /* CLOCK_BOOTTIME at which it ends */
    bool in_force;
};

enum { CAPTURE_COMMAND_REPEATED = 1 };

/* CAPTURE_ERR_INVALID names the field. Release with capture_authority_release. */
CAPTURE_API int capture_authority_create(const struct capture_authority_config *config, capture_authority_t **out,
                                         struct capture_error_info *error);

/* Lets go of it; captures that are bound to it keep it. NULL is allowed. */
CAPTURE_API void capture_authority_release(capture_authority_t *authority);

/* Before a challenge is answered with a quote: its lease counts from this instant, which is returned (CLOCK_BOOTTIME, ns). nonce and
 * tls_spki_sha256 (of the key that is served) have 32 bytes. The last 32 challenges are kept. CAPTURE_ERR_REFUSED: NONCE_REUSED. */
CAPTURE_API int capture_authority_note_challenge(capture_authority_t *authority, const uint8_t *nonce, const uint8_t *tls_spki_sha256,
                                                 uint64_t *boottime_ns, struct capture_error_info *error);

/* Puts a lease in force in place of the one before, or with a second one for a nonce ends the one in force earlier. `lease` are the
 * bytes of a Lease as they were signed (16 KiB at most). CAPTURE_ERR_REFUSED: LEASE_SIGNATURE_INVALID, LEASE_INVALID (form),
 * LEASE_NOT_OURS, LEASE_STALE (nonce unknown or used, sequence that does not rise, second lease that does not end earlier),
 * LEASE_EXPIRED, AUDIT_TRUNCATED; *out is filled on success only. */
CAPTURE_API int capture_authority_accept_lease(capture_authority_t *authority, const uint8_t *lease, uint64_t length,
                                               const uint8_t *signature, uint64_t signature_length, struct capture_lease *out,
                                               struct capture_error_info *error);

/* The newest lease. */
CAPTURE_API int capture_authority_get_lease(capture_authority_t *authority, struct capture_lease *out);

/* Admits a command: `method` is its full name, `payload` the request's bytes as received (1 MiB at most), `authorization` the bytes
 * of its CommandAuthorization (4 KiB at most). 0: admitted. CAPTURE_COMMAND_REPEATED: this method came with this request id and
 * payload before under the same lease, which entitles to nothing more. CAPTURE_ERR_LEASE: AGENT_UNATTESTED, LEASE_EXPIRED.
 * CAPTURE_ERR_REFUSED: COMMAND_SIGNATURE_INVALID, COMMAND_INVALID (form), LEASE_METHOD_DENIED, LEASE_STALE (of neither the lease in
 * force nor the one before), COMMAND_EXPIRED, REQUEST_ID_REUSED (with another payload), COMMAND_LIMIT (65,536 under one lease). */
CAPTURE_API int capture_authority_admit(capture_authority_t *authority, const char *method, const uint8_t *payload,
                                        uint64_t payload_length, const uint8_t *authorization, uint64_t length,
                                        struct capture_error_info *error);

/* Binds a capture, once and before its start, for good. `request` are the payload bytes of the StartCapture command that the start
 * carries out: capture_start then needs that command admitted, not carried out yet, and with the capture's interfaces (pcap:FILE
 * whatever the file), number of files, and filter, else it is CAPTURE_ERR_REFUSED: CAPTURE_NOT_COMMANDED. */
CAPTURE_API int capture_set_authority(capture_t *capture, capture_authority_t *authority, const uint8_t *request, uint64_t length,
                                      struct capture_error_info *error);

/* Live flows by query, sorted, into `out` and, unless NULL, `statistics` (room for query->limit each). Returns how many. The packet path answers between its
 * batches and is never stopped; each record is consistent. Any thread. */
CAPTURE_API int capture_flow_get_all(capture_t *capture, const struct capture_flow_query *query, struct capture_flow *out,
                                     struct capture_flow_statistics *statistics, struct capture_error_info *error);

/* The live flows with this flow_id (as many as `capacity`; the same key may live in several shards). Any thread. */
CAPTURE_API int capture_flow_lookup(capture_t *capture, uint64_t flow_id, struct capture_flow *out,
                                    struct capture_flow_statistics *statistics, uint32_t capacity);

/* Encodes flows, with their statistics unless NULL, as the bytes of one jarvis.capture.v1.FlowBatch (field `batch`, number 2, of
 * ListFlowsResponse). Returns the length, or CAPTURE_ERR_SPACE. 224 bytes a record always suffice, 576 with statistics. Any thread. */
CAPTURE_API int64_t capture_flow_encode(const struct capture_flow *flows, const struct capture_flow_statistics *statistics,
                                        uint32_t count, uint8_t *out, uint64_t capacity);

/* A subscriber's reader. Any thread may open one and one thread at a time use it, while the capture lives; close frees it. */
CAPTURE_API int capture_reader_open(capture_t *capture, const struct capture_reader_config *config, capture_flow_reader_t **out,
                                    struct capture_error_info *error);
CAPTURE_API void capture_reader_close(capture_flow_reader_t *reader);

/* Next records as the bytes of one jarvis.capture.v1.StreamFlowsResponse with `batch` set (tag 0x12, length, FlowBatch), resume token
 * included. At most max_records, at most capacity bytes (at least 4,096). 0 records: nothing written, look at info. Never waits. */
CAPTURE_API int capture_reader_read_batch(capture_flow_reader_t *reader, uint8_t *out, uint64_t capacity, uint32_t max_records,
                                          struct capture_batch_info *info);

/* Next records as JSON lines or CSV lines (without the header line) in UTF-8. Keys and columns: docs/flow-semantics.md. */
CAPTURE_API int capture_reader_read_text(capture_flow_reader_t *reader, uint32_t format, char *out, uint64_t capacity,
                                         struct capture_batch_info *info);

/* The CSV header line of a capture that keeps these statistics (enum capture_statistics, or'ed), newline included. Static storage;
 * NULL: there is no such statistics. Any thread. */
CAPTURE_API const char *capture_csv_header(uint32_t statistics);

/* Next records column by column. */
CAPTURE_API int capture_reader_read_columns(capture_flow_reader_t *reader, const struct capture_flow_columns *columns,
                                            uint32_t max_records, struct capture_batch_info *info);

/* Next frames from the packet ring (packet_ring_mb > 0), in place; waits at most timeout_ms (with workers = 0 it moves the capture
 * forward itself). One batch at a time: release it before the next. Returns the count; 0 at a timeout or at the end. */
CAPTURE_API int capture_packets_next(capture_t *capture, uint32_t timeout_ms, struct capture_packet_batch *out);
CAPTURE_API void capture_packets_release(capture_t *capture);

#include "jarvis_capture_export.h"

#ifndef JARVIS_CAPTURE_CDEF
#ifdef __cplusplus
}
#endif
#endif

#endif
