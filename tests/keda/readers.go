package main

import (
	"context"
	"fmt"
	"time"

	"github.com/kedacore/keda/v2/pkg/scalers"
	"github.com/kedacore/keda/v2/pkg/scalers/scalersconfig"
)

// reading is one question to one of KEDA's scalers, as a poll asks it.
type reading struct {
	Metric *float64 `json:"metric"`
	Active bool     `json:"active"`
	Name   string   `json:"name"`
	Target float64  `json:"target"`
	Error  string   `json:"error"`
}

func newScaler(ctx context.Context, kind string, c *scalersconfig.ScalerConfig) (scalers.Scaler, error) {
	switch kind {
	case "kafka":
		return scalers.NewKafkaScaler(ctx, c)
	case "redis-streams":
		return scalers.NewRedisStreamsScaler(ctx, false, false, c)
	case "postgresql":
		return scalers.NewPostgreSQLScaler(ctx, c)
	}
	return nil, fmt.Errorf("no scaler %q here", kind)
}

func read(kind string, metadata, auth map[string]string) reading {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if auth == nil {
		auth = map[string]string{}
	}
	s, err := newScaler(ctx, kind, &scalersconfig.ScalerConfig{
		ScalableObjectName: "tranche-worker", ScalableObjectNamespace: "tranche",
		ScalableObjectType: "ScaledJob", TriggerType: kind, TriggerMetadata: metadata,
		AuthParams: auth, ResolvedEnv: map[string]string{}, GlobalHTTPTimeout: scalerTimeout})
	if err != nil {
		return reading{Error: err.Error()}
	}
	defer s.Close(ctx)
	spec := s.GetMetricSpecForScaling(ctx)[0].External
	out := reading{Name: spec.Metric.Name, Target: spec.Target.AverageValue.AsApproximateFloat64()}
	values, active, err := s.GetMetricsAndActivity(ctx, spec.Metric.Name)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	value := values[0].Value.AsApproximateFloat64()
	out.Metric, out.Active = &value, active
	return out
}
