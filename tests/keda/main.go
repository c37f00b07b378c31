// keda runs KEDA's own code for tests/keda/*.py: its scalers on live queues, and its reconcilers,
// scale handler and executor over a fake API, with a kubelet and an HPA of ours. Requests come in
// as JSON lines, answers and records go out as such.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	batchv1 "k8s.io/api/batch/v1"
	ctrl "sigs.k8s.io/controller-runtime"
)

type request struct {
	ID       int               `json:"id"`
	Do       string            `json:"do"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata"`
	Auth     map[string]string `json:"auth"`
	Path     string            `json:"path"`
	Pod      string            `json:"pod"`
}

type proof struct {
	r       *records
	c       *cluster
	k       *kubelet
	mutex   sync.Mutex
	current *operator
}

func (p *proof) operator() *operator {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.current
}

func (p *proof) set(o *operator) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.current = o
}

func (p *proof) start() error {
	o, err := startOperator(p.c)
	if err == nil {
		p.set(o)
		p.r.put("operator_started", nil)
	}
	return err
}

func (p *proof) apply(path string) error {
	scaled, err := p.c.apply(context.Background(), path)
	if err != nil || p.operator() == nil {
		return err
	}
	for _, o := range scaled {
		if err := p.operator().reconcile(o); err != nil {
			return err
		}
	}
	return nil
}

// unfinished: Jobs that are not over, and pods that run.
func (p *proof) unfinished() (fields, error) {
	list, running := &batchv1.JobList{}, 0
	err := p.c.own.List(context.Background(), list)
	for i := range list.Items {
		if !jobFinished(&list.Items[i]) {
			running++
		}
	}
	p.k.mutex.Lock()
	defer p.k.mutex.Unlock()
	pods := []string{}
	for name := range p.k.pods {
		pods = append(pods, name)
	}
	return fields{"jobs": len(list.Items), "running": running, "pods": pods}, err
}

func (p *proof) handle(q *request) (any, error) {
	switch q.Do {
	case "read":
		return read(q.Type, q.Metadata, q.Auth), nil
	case "apply":
		return nil, p.apply(q.Path)
	case "start_operator":
		return nil, p.start()
	case "stop_operator":
		if o := p.operator(); o != nil {
			p.set(nil)
			o.stop()
			p.r.put("operator_stopped", nil)
		}
		return nil, nil
	case "kill":
		return nil, p.k.kill(q.Pod, func(v *pod) error { return v.cmd.Process.Signal(syscall.SIGKILL) })
	case "state":
		return p.unfinished()
	}
	return nil, fmt.Errorf("unknown request %q", q.Do)
}

func main() {
	binary := flag.String("binary", "", "tranche")
	folder := flag.String("folder", "", "for the pods' files and logs")
	sync := flag.Duration("hpa-sync", 15*time.Second, "the HPA's period")
	flag.Parse()
	log, err := os.Create(*folder + "/keda.log")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(69)
	}
	r := newRecords(os.Stdout)
	ctrl.SetLogger(logr.New(newSink(r, log)))
	p := &proof{r: r, c: newCluster(r)}
	p.k = startKubelet(p.c, *binary, *folder)
	ctx, stop := context.WithCancel(context.Background())
	go hpa{p.c, p.operator}.run(ctx, *sync)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		q := &request{}
		answer := fields{}
		value, err := any(nil), json.Unmarshal(lines.Bytes(), q)
		if err == nil {
			value, err = p.handle(q)
		}
		answer["id"], answer["value"] = q.ID, value
		if err != nil {
			answer["error"] = err.Error()
		}
		r.put("answer", answer)
	}
	stop()
	if o := p.operator(); o != nil {
		o.stop()
	}
	p.k.stop()
}
