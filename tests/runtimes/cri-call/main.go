// cri-call makes one call on a CRI socket: the request is JSON on standard input, the answer JSON on standard
// output. A refused call prints {"code": ..., "message": ...} and exits 1. Field names are those of the protocol
// (pod_sandbox_id). Usage: cri-call SOCKET METHOD SECONDS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// methods holds, for each call, an empty request and an empty answer.
var methods = map[string][2]any{
	"Status":           {&cri.StatusRequest{}, &cri.StatusResponse{}},
	"RunPodSandbox":    {&cri.RunPodSandboxRequest{}, &cri.RunPodSandboxResponse{}},
	"StopPodSandbox":   {&cri.StopPodSandboxRequest{}, &cri.StopPodSandboxResponse{}},
	"RemovePodSandbox": {&cri.RemovePodSandboxRequest{}, &cri.RemovePodSandboxResponse{}},
	"PodSandboxStatus": {&cri.PodSandboxStatusRequest{}, &cri.PodSandboxStatusResponse{}},
	"ListPodSandbox":   {&cri.ListPodSandboxRequest{}, &cri.ListPodSandboxResponse{}},
}

func main() {
	if len(os.Args) != 4 {
		fail(2, "usage: cri-call SOCKET METHOD SECONDS")
	}
	seconds, err := strconv.Atoi(os.Args[3])
	pair, known := methods[os.Args[2]]
	if err != nil || !known {
		fail(2, "usage: cri-call SOCKET METHOD SECONDS")
	}
	if err := json.NewDecoder(os.Stdin).Decode(pair[0]); err != nil {
		fail(2, err.Error())
	}
	conn, err := grpc.Dial("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(2, err.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	if err := conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+os.Args[2], pair[0], pair[1]); err != nil {
		answer(map[string]any{"code": status.Code(err).String(), "message": status.Convert(err).Message()})
		os.Exit(1)
	}
	answer(pair[1])
}

func answer(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		fail(2, err.Error())
	}
}

func fail(code int, text string) {
	fmt.Fprintln(os.Stderr, "cri-call:", text)
	os.Exit(code)
}
