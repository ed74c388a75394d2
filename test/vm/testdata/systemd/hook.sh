#!/bin/sh
echo "$IMPRINT_EVENT: $IMPRINT_NAME reads $(wc -c <"$IMPRINT_PARAMS/db-password") bytes"
: >"/run/imprint/$IMPRINT_EVENT"
