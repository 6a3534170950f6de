use super::super::testing::{GOOD, Server};
use super::*;

#[tokio::test]
async fn one_connection_serves_many_questions() {
    let server = Server::start().await;
    let mut questions = server.questions();
    for _ in 0..5 {
        questions.ask().await.unwrap();
    }
    assert_eq!(server.connections(), 1);
    questions.pause();
    questions.ask().await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_hung_server_is_noticed_in_time_and_a_good_one_again() {
    let server = Server::start().await;
    let mut questions = server.questions();
    questions.ask().await.unwrap();
    server.answer(None);
    let asked = tokio::time::Instant::now();
    let error = questions.ask().await.unwrap_err();
    assert!(matches!(error, ProbeError::Timeout(_)), "{error}");
    assert!(asked.elapsed() < LIMIT * 2, "{:?}", asked.elapsed());
    server.answer(Some(GOOD));
    questions.ask().await.unwrap();
}

#[tokio::test]
async fn bad_answers_are_failures() {
    let server = Server::start().await;
    let mut questions = server.questions();
    for bad in ["HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-x\r\n\r\n", ""] {
        server.answer(Some(bad));
        assert!(questions.ask().await.is_err(), "{bad:?}");
    }
    server.answer(Some(GOOD));
    questions.ask().await.unwrap();
}

#[test]
fn answers_are_read_whole_and_no_further() {
    let good = |again| Answer::Good { again };
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n";
    for (what, answer, expected) in [
        ("nothing yet", String::new(), Answer::Part),
        ("a part of the head", head.to_owned(), Answer::Part),
        ("a part of the body", format!("{head}\r\no"), Answer::Part),
        ("all", format!("{head}\r\nok"), good(true)),
        ("more than was said", format!("{head}\r\nokay"), good(false)),
        ("the last on its connection", format!("{head}Connection: close\r\n\r\nok"), good(false)),
        ("an unknown length", "HTTP/1.1 204 No Content\r\n\r\n".to_owned(), good(false)),
        ("too long a body", "HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n".to_owned(), good(false)),
        ("a refusal", "HTTP/1.1 503 X\r\n\r\n".to_owned(), Answer::Bad("http/1.1 503 x".to_owned())),
        ("too long a head", "x".repeat(ANSWER_BYTES), Answer::Bad("too long an answer".to_owned())),
    ] {
        assert_eq!(read(answer.as_bytes()), expected, "{what}");
    }
}
