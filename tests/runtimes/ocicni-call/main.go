// ocicni-call does to one pod's network what CRI-O does, by the library that CRI-O does it with. The request is JSON
// on standard input, its pods in the library's own field names; what came of it is JSON on standard output. A refusal
// is printed on standard error, exit code 1. Usage: ocicni-call CONFDIR BINDIR
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/cri-o/ocicni/pkg/ocicni"
	"github.com/sirupsen/logrus"
)

type request struct {
	Call string               // run, status-of-pod, stop, gc, status
	Pod  ocicni.PodNetwork    // the pod, but for gc and status
	Pods []*ocicni.PodNetwork // for gc: those that live
}

type attachment struct {
	Network   string       `json:"network"`
	Interface string       `json:"interface"`
	Result    types.Result `json:"result"`
}

func main() {
	if len(os.Args) != 3 {
		fail(2, fmt.Errorf("usage: ocicni-call CONFDIR BINDIR"))
	}
	logrus.SetLevel(logrus.WarnLevel)
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fail(2, err)
	}
	library, err := ocicni.InitCNINoInotify("", os.Args[1], "", os.Args[2])
	if err != nil {
		fail(1, err)
	}
	answer, err := do(library, asked)
	if err != nil {
		fail(1, err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		fail(2, err)
	}
}

func do(library ocicni.CNIPlugin, asked request) ([]attachment, error) {
	ctx := context.Background()
	switch asked.Call {
	case "run":
		// CRI-O takes a sandbox's addresses from the status it asks for right after, which is CHECK.
		if _, err := library.SetUpPodWithContext(ctx, asked.Pod); err != nil {
			return nil, err
		}
		return told(library.GetPodNetworkStatusWithContext(ctx, asked.Pod))
	case "status-of-pod":
		return told(library.GetPodNetworkStatusWithContext(ctx, asked.Pod))
	case "stop":
		return nil, library.TearDownPodWithContext(ctx, asked.Pod)
	case "gc":
		return nil, library.GC(ctx, asked.Pods)
	case "status":
		return nil, library.StatusWithContext(ctx)
	}
	return nil, fmt.Errorf("no call %q", asked.Call)
}

func told(results []ocicni.NetResult, err error) ([]attachment, error) {
	found := []attachment{}
	for _, each := range results {
		found = append(found, attachment{each.Name, each.Ifname, each.Result})
	}
	return found, err
}

func fail(code int, err error) {
	fmt.Fprintln(os.Stderr, "ocicni-call:", err)
	os.Exit(code)
}
