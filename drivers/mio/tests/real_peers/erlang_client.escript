#!/usr/bin/env escript
%% Erlang's {packet, 2} client: escript erlang_client.escript PORT
%% Sends messages of every awkward size to an echo server, in bulk and byte by byte.

main([Port]) ->
    Address = {127, 0, 0, 1},
    Options = [binary, {active, false}, {nodelay, true}],
    Messages = [message(Size) || Size <- [0, 1, 2, 255, 256, 65534, 65535]],
    {ok, Socket} = gen_tcp:connect(Address, list_to_integer(Port), [{packet, 2} | Options]),
    %% One after another,
    [round_trip(Socket, Message) || Message <- Messages],
    %% all at once,
    Sender = self(),
    spawn_link(fun() -> [ok = gen_tcp:send(Socket, M) || M <- Messages], Sender ! sent end),
    [{ok, Message} = gen_tcp:recv(Socket, 0, 20000) || Message <- Messages],
    receive sent -> ok end,
    %% and byte by byte.
    ok = inet:setopts(Socket, [{packet, raw}]),
    [byte_by_byte(Socket, Message) || Message <- Messages],
    ok = gen_tcp:close(Socket),
    io:format("ok~n").

message(Size) ->
    << <<(N rem 251)>> || N <- lists:seq(1, Size) >>.

round_trip(Socket, Message) ->
    ok = gen_tcp:send(Socket, Message),
    {ok, Message} = gen_tcp:recv(Socket, 0, 20000).

byte_by_byte(Socket, Message) ->
    Frame = <<(byte_size(Message)):16, Message/binary>>,
    [ok = gen_tcp:send(Socket, <<Byte>>) || <<Byte>> <= Frame],
    {ok, Frame} = gen_tcp:recv(Socket, byte_size(Frame), 20000).
