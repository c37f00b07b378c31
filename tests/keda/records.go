package main

import (
	"encoding/json"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// records writes one JSON object a line: answers to requests (they carry an id) and everything
// that happened in between, each with the seconds since the start.
type records struct {
	mutex sync.Mutex
	out   *json.Encoder
	begin time.Time
}

type fields map[string]any

func newRecords(out io.Writer) *records {
	return &records{out: json.NewEncoder(out), begin: time.Now()}
}

func (r *records) put(event string, f fields) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	line := fields{"event": event, "t": time.Since(r.begin).Seconds()}
	for k, v := range f {
		line[k] = v
	}
	_ = r.out.Encode(line)
}

// What KEDA says of itself that is worth a record; the rest stands in its log alone.
var told = []string{
	"Scaling Jobs", "Creating jobs", "Scaler Metric value", "Getting metrics and activity from scaler",
	"ScaleTarget cooling down", "Successfully updated ScaleTarget",
	"Successfully set ScaleTarget replicas count to ScaledObject minReplicaCount",
	"RolloutStrategy: gradual, Not deleting jobs owned by the previous version of the scaleJob",
	"RolloutStrategy: immediate, Deleting jobs owned by the previous version of the scaledJob",
	"Remove a job by reaching the historyLimit",
}

// sink is KEDA's logger: all of it to a file, errors and what is in `told` to the records too.
type sink struct {
	r      *records
	file   *json.Encoder
	mutex  *sync.Mutex
	name   string
	values []any
}

func newSink(r *records, log io.Writer) logr.LogSink {
	return &sink{r: r, file: json.NewEncoder(log), mutex: &sync.Mutex{}}
}

func (s *sink) Init(logr.RuntimeInfo)  {}
func (s *sink) Enabled(level int) bool { return level <= 1 }
func (s *sink) WithName(name string) logr.LogSink {
	c := *s
	c.name = name
	return &c
}

func (s *sink) WithValues(kv ...any) logr.LogSink {
	c := *s
	c.values = append(slices.Clone(s.values), kv...)
	return &c
}

func (s *sink) write(msg string, err error, kv []any, record bool) {
	line := fields{"keda": msg}
	for pairs := append(slices.Clone(s.values), kv...); len(pairs) >= 2; pairs = pairs[2:] {
		key, ok := pairs[0].(string)
		if !ok {
			continue
		}
		switch v := pairs[1].(type) {
		case int, int32, int64, float64, bool, string:
			line[key] = v
		case error:
			line[key] = v.Error()
		}
	}
	if err != nil {
		line["error"] = err.Error()
	}
	s.mutex.Lock()
	_ = s.file.Encode(line)
	s.mutex.Unlock()
	if record {
		s.r.put("keda", line)
	}
}

func (s *sink) Info(_ int, msg string, kv ...any) {
	s.write(msg, nil, kv, slices.Contains(told, msg))
}

func (s *sink) Error(err error, msg string, kv ...any) {
	s.write(msg, err, kv, true)
}
