package main

import (
	"testing"
	"time"
)

func TestReadWrk(t *testing.T) {
	const good = `Running 5s test @ http://172.17.0.1:34567/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    12.11ms    3.02ms  40.11ms   70.00%
    Req/Sec     1.30k   101.00     1.50k    68.00%
  Latency Distribution
     50%   11.84ms
     75%   13.40ms
     90%   15.00ms
     99%    1.02s
  6510 requests in 5.00s, 5.28MB read
Requests/sec:   1301.42
Transfer/sec:      1.06MB
`
	a, err := readWrk(good)
	if err != nil || a != (asked{6510, 1301.42, 11840 * time.Microsecond, 1020 * time.Millisecond}) {
		t.Errorf("%+v, %v", a, err)
	}
	for _, bad := range []string{"", "  Socket errors: connect 0, read 3, write 0, timeout 0\n" + good, good + "  Non-2xx or 3xx responses: 7\n"} {
		if _, err := readWrk(bad); err == nil {
			t.Errorf("no error in %q", bad)
		}
	}
}
