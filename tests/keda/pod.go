package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is one worker process, started from a pod template as it stands: its command and arguments,
// its ConfigMap and Secrets as files, its volumes as folders. Paths under a mount become paths in
// the pod's folder, since there is no mount namespace; each gets a port, since there is one host.
type pod struct {
	name, owner, kind string
	generation        string
	template          corev1.PodTemplateSpec
	cmd               *exec.Cmd
	port              int
	ready, stopping   bool
	killAt            time.Time
	mounts            [][2]string // mount path, folder; the longest first
}

type exit struct {
	p    *pod
	code int
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// local replaces what the mounts would make of a path.
func (p *pod) local(text string) string {
	for _, m := range p.mounts {
		text = strings.ReplaceAll(text, m[0], m[1])
	}
	return text
}

func (k *kubelet) volume(ns, at string, v *corev1.Volume) (map[string][]byte, error) {
	ctx, files := context.Background(), map[string][]byte{}
	switch {
	case v.ConfigMap != nil:
		o := &corev1.ConfigMap{}
		if err := k.c.own.Get(ctx, types.NamespacedName{Namespace: ns, Name: v.ConfigMap.Name}, o); err != nil {
			return nil, err
		}
		for name, text := range o.Data {
			files[name] = []byte(text)
		}
	case v.Secret != nil:
		o := &corev1.Secret{}
		if err := k.c.own.Get(ctx, types.NamespacedName{Namespace: ns, Name: v.Secret.SecretName}, o); err != nil {
			return nil, err
		}
		files = o.Data
	}
	return files, os.MkdirAll(at, 0o755)
}

func (k *kubelet) mount(p *pod, ns, folder string) error {
	c := &p.template.Spec.Containers[0]
	contents := map[string]map[string][]byte{}
	for i := range p.template.Spec.Volumes {
		v := &p.template.Spec.Volumes[i]
		at := filepath.Join(folder, v.Name)
		files, err := k.volume(ns, at, v)
		if err != nil {
			return err
		}
		contents[at] = files
		for _, m := range c.VolumeMounts {
			if m.Name == v.Name && m.MountPath != "/tmp" {
				p.mounts = append(p.mounts, [2]string{m.MountPath, at})
			}
		}
	}
	sort.Slice(p.mounts, func(i, j int) bool { return len(p.mounts[i][0]) > len(p.mounts[j][0]) })
	for at, files := range contents {
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(at, name), []byte(p.local(string(data))), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *kubelet) start(p *pod, ns string) error {
	folder := filepath.Join(k.folder, p.name)
	if err := k.mount(p, ns, folder); err != nil {
		return err
	}
	var err error
	if p.port, err = freePort(); err != nil {
		return err
	}
	c := &p.template.Spec.Containers[0]
	words := append(append([]string{}, c.Command...), c.Args...)
	if len(words) == 0 || words[0] != "tranche" {
		return fmt.Errorf("container %s: want `tranche`, found %q", c.Name, words)
	}
	for i := range words {
		words[i] = p.local(words[i])
	}
	p.cmd = exec.Command(k.binary, append(words[1:], fmt.Sprintf("--http=127.0.0.1:%d", p.port))...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + folder}
	for _, e := range c.Env {
		value := p.local(e.Value)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.name" {
			value = p.name
		}
		p.cmd.Env = append(p.cmd.Env, e.Name+"="+value)
	}
	log, err := os.Create(filepath.Join(k.folder, p.name+".log"))
	if err != nil {
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, folder
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return err
	}
	k.r.put("pod_started", fields{"pod": p.name, "owner": p.owner, "generation": p.generation})
	go func() {
		_ = p.cmd.Wait()
		log.Close()
		code := p.cmd.ProcessState.ExitCode()
		if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		k.exits <- exit{p, code}
	}()
	return nil
}

var asker = http.Client{Timeout: 2 * time.Second}

func (p *pod) ask(path string) (int, string) {
	answer, err := asker.Get(fmt.Sprintf("http://127.0.0.1:%d%s", p.port, path))
	if err != nil {
		return 0, ""
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text)
}

var outstanding = regexp.MustCompile(`(?m)^tranche_outstanding_messages (\d+)$`)

// held is how many messages the worker has claimed and not acknowledged; -1: it does not say.
func (p *pod) held() int {
	_, text := p.ask("/metrics")
	found := outstanding.FindStringSubmatch(text)
	if found == nil {
		return -1
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// end is what deleting a pod does: SIGTERM, then SIGKILL when the grace is over.
func (k *kubelet) end(p *pod, why string) {
	grace := int64(30)
	if p.template.Spec.TerminationGracePeriodSeconds != nil {
		grace = *p.template.Spec.TerminationGracePeriodSeconds
	}
	k.r.put("pod_stopped", fields{"pod": p.name, "why": why, "held": p.held()})
	p.stopping, p.killAt = true, time.Now().Add(time.Duration(grace)*time.Second)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
}
