/* SPDX-License-Identifier: Apache-2.0 */
/* Exporters for tests. */
#ifndef JARVIS_TEST_EXPORT_CONFIG_H
#define JARVIS_TEST_EXPORT_CONFIG_H

#include "check.h"
#include "jarvis_capture.h"

static inline capture_exporter_t *exporter_of(struct capture_export_config config) {
    struct capture_error_info error = {0};
    capture_exporter_t *exporter;
    config.struct_size = sizeof(config);
    if (capture_exporter_create(&config, &exporter, &error) != CAPTURE_OK) {
        fprintf(stderr, "%s: %s\n", error.field, error.message);
        exit(1);
    }
    return exporter;
}

static inline struct capture_export_totals totals_of(capture_exporter_t *exporter) {
    struct capture_export_totals totals;
    CHECK_EQUAL(CAPTURE_OK, capture_exporter_get_totals(exporter, &totals));
    return totals;
}

#endif
